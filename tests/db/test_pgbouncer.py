"""Behind PgBouncer with transaction pooling everything works, with fewer connections to the server than workers."""

import pytest
from django.db import connections

from poolsave import pooled_operation
from tests.models import Person, Thing
from tests.support import operations, pgbouncer

pytestmark = [
    pytest.mark.skipif(pgbouncer.missing() is not None, reason=str(pgbouncer.missing())),
    pytest.mark.django_db(transaction=True, databases="__all__"),
]
SERVER_CONNECTIONS, WORKERS = 2, 8
MODES = {
    "object": {},
    "chunk": {"transaction": "chunk"},
    "batched": {"transaction": "chunk", "batch_writes": True},
    "noted": {"resolve_lost": True},
}


@pytest.fixture
def pooled(monkeypatch):
    """The alias "postgres" leads to a PgBouncer."""
    settings = connections["postgres"].settings_dict
    with pgbouncer.pooler(settings, size=SERVER_CONNECTIONS) as through:
        connections["postgres"].close()
        for key, value in {**through, "DISABLE_SERVER_SIDE_CURSORS": True}.items():
            monkeypatch.setitem(settings, key, value)
        yield
        connections.close_all()


def on(function, **options):
    operation = pooled_operation(function, executor="thread", workers=WORKERS, databases=("postgres",), chunksize=5)
    return operation.using(**options).bind(alias="postgres")


def names_saved():
    return sorted(Person.objects.using("postgres").values_list("name", flat=True))


@pytest.mark.parametrize("mode", MODES)
def test_each_object_is_saved_once(pooled, mode):
    names = [f"name {number:03}" for number in range(200)]
    assert on(operations.plain_save, **MODES[mode]).map(names).succeeded == 200
    assert names_saved() == names


@pytest.mark.parametrize("mode", ["object", "chunk"])
def test_failures_and_retries_leave_no_other_object_undone(pooled, mode):
    """A rollback ends the transaction of the object, or of its savepoint, and not that of another client."""
    names = [f"name {number:03}" for number in range(60)]
    report = on(saves_or_fails, retries=2, **MODES[mode]).map(names)
    assert names_saved() == [name for name in names if not name.endswith("7")]
    assert (report.succeeded, report.failed) == (54, 6)


def saves_or_fails(name, alias):
    operations.plain_save(name, alias)
    if name.endswith("7"):
        operations.plain_save("x" * 10_000, alias)  # too long for its column, which aborts the transaction


def test_rows_of_a_queryset_are_visited_once(pooled):
    Thing.objects.using("postgres").bulk_create(Thing() for _ in range(200))
    report = pooled_operation(visit, executor="thread", workers=WORKERS, databases=("postgres",), chunksize=5).map(
        Thing.objects.using("postgres").all()
    )
    assert report.succeeded == 200
    assert set(Thing.objects.using("postgres").values_list("visits", flat=True)) == {1}


def visit(row):
    row.visits += 1
    row.save(update_fields=["visits"])


def test_check_names_the_pooler(pooled):
    (message,) = [found for found in on(operations.plain_save).check() if found.id == "poolsave.W006"]
    assert "another server process answers" in message.msg
