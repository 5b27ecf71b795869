"""A failure is recorded whatever its text is, and the text never decides what becomes of the chunk or the run."""

import pytest
from django.db import connections

from poolsave import Run, pooled_operation
from tests.models import Thing
from tests.support.durable import ledger, make_things, visited

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")

MESSAGE = "5 € \U0001f600 " + "x" * 10
NARROW = {
    "postgres": (
        "CREATE FUNCTION narrow() RETURNS trigger AS $$ BEGIN"
        " PERFORM convert_to(NEW.message || NEW.traceback || NEW.cause || NEW.frame, 'LATIN1'); RETURN NEW;"
        " END $$ LANGUAGE plpgsql;"
        "CREATE TRIGGER narrow BEFORE INSERT OR UPDATE ON poolsave_ledger_failure FOR EACH ROW"
        " EXECUTE FUNCTION narrow()",
        "DROP FUNCTION narrow CASCADE",
    ),
    "mariadb": (
        "ALTER TABLE poolsave_ledger_failure CONVERT TO CHARACTER SET latin1",
        "ALTER TABLE poolsave_ledger_failure CONVERT TO CHARACTER SET utf8mb4",
    ),
}
"""Have the table refuse what LATIN1 has no character for, and undo it. PostgreSQL's answer is that of the encoding."""


@pytest.fixture
def narrow(server):
    """A server whose table of failures stores LATIN1 alone."""
    narrowed, undone = NARROW[server]
    with connections[server].cursor() as cursor:
        cursor.execute(narrowed)
    yield server
    with connections[server].cursor() as cursor:
        cursor.execute(undone)


@pooled_operation(progress=False, workers=2, start_method="fork", chunksize=4)
def prices(row):
    row.visits += 1
    row.save()
    if row.group == 5:
        raise ValueError(MESSAGE)
    if row.group == 6:
        row.dies_in_a_folder()


@pytest.mark.parametrize("mode", ["chunk", "object"])
def test_message_the_encoding_lacks_is_stored_in_ascii(narrow, mode):
    rows = make_things(narrow, 12)
    rows.filter(pk__in=[3, 10]).update(group=5)
    report = prices.using(transaction=mode, databases=(narrow,)).map(rows, run="prices")
    run, _ranges, failures = ledger(narrow, "prices")
    assert (report.succeeded, report.failed, run.status) == (10, 2, "finished with failures")
    assert {each.key: each.message for each in failures} == dict.fromkeys(
        ("3", "10"), r"5 \u20ac \U0001f600 xxxxxxxxxx"
    )
    assert visited(narrow) == {pk: int(pk not in (3, 10)) for pk in range(1, 13)}
    again = prices.using(transaction=mode, databases=(narrow,)).map(rows, run=Run("prices", retry={}))
    assert (again.failed, again.run.status) == (2, "finished with failures")
    assert {each.attempts for each in ledger(narrow, "prices")[2]} == {2}


@pytest.mark.parametrize("alias", ["postgres"])
@pytest.mark.parametrize("mode", ["chunk", "object"])
def test_long_names_with_undecodable_bytes_fit_columns(alias, mode, monkeypatch):
    folder = "/srv/" + "\udce9" * 200
    scope = {}
    exec(compile("def fails(row): raise ValueError('\\x00 in it')", f"{folder}/work.py", "exec"), scope)
    monkeypatch.setattr(Thing, "dies_in_a_folder", scope["fails"], raising=False)
    rows = make_things(alias, 8)
    rows.filter(pk=6).update(group=6)
    report = prices.using(transaction=mode, databases=(alias,)).map(rows, run="folders")
    [failure] = ledger(alias, "folders")[2]
    assert (report.succeeded, report.run.status, failure.key) == (7, "finished with failures", "6")
    assert failure.message == r"\x00 in it"
    assert failure.frame.endswith("/work.py:1 in fails")
    assert [len(failure.frame), len(failure.cause)] == [300, 300]


def raises_after(rows):
    yield from rows
    raise ValueError("caf\udce9 \x00 €")


@pytest.mark.parametrize("alias", ["postgres"])
def test_reason_of_a_pause_is_storable(alias):
    make_things(alias, 2)
    operation = prices.using(executor="serial", databases=(alias,))
    rows = raises_after(Thing.objects.using(alias).all())
    with pytest.raises(ValueError, match="caf"):
        operation.map(rows, run=Run("reasons", using=alias, key=lambda row: row.pk))
    run = ledger(alias, "reasons")[0]
    assert (run.status, run.stop_reason) == ("paused", r"ValueError: caf\udce9 \x00 €")
