"""The ledger's row of a transaction takes no round trip of its own, and an answer to it is taken for no other one's."""

import json

import pytest
from django.db import connections

from poolsave import Run, pooled_operation
from tests.models import AuditEntry, Thing
from tests.support import pgbouncer
from tests.support.durable import counts, entries, ledger, make_things, visited

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


@pytest.fixture
def pooled(monkeypatch):
    """The alias "postgres" leads to a PgBouncer, which gives each transaction any of two sessions of the server."""
    settings = connections["postgres"].settings_dict
    with pgbouncer.pooler(settings, size=2) as through:
        connections["postgres"].close()
        for key, value in {**through, "DISABLE_SERVER_SIDE_CURSORS": True}.items():
            monkeypatch.setitem(settings, key, value)
        yield
        connections.close_all()


@pooled_operation(progress=False, workers=1, start_method="fork", databases=("postgres",))
def forgets_statements(row):
    """Has the server forget what was prepared in the session, as some pools do between two uses of a connection."""
    with connections["postgres"].cursor() as cursor:
        cursor.execute("DEALLOCATE ALL")
    counts.func(row)


def number_of_answers(monkeypatch, rows, run):
    """How often a run of one object after the other has waited for the server."""
    psycopg = pytest.importorskip("psycopg")
    answers = 0

    def wait(connection, *args, **kwargs):
        nonlocal answers
        answers += 1
        return original(connection, *args, **kwargs)

    original = psycopg.Connection.wait
    with monkeypatch.context() as patched:
        patched.setattr(psycopg.Connection, "wait", wait)
        operation = counts.using(transaction="object", databases=("postgres",), executor="serial", chunksize=100)
        assert operation.map(rows, run=run).succeeded == len(rows)
    return answers


def test_row_goes_to_the_server_together_with_commit(monkeypatch):
    plain, durable = [], []
    for number in (10, 60):
        rows = make_things("postgres", number)
        plain.append(number_of_answers(monkeypatch, rows, None))
        durable.append(number_of_answers(monkeypatch, rows, Run(f"of {number}", using="postgres")))
        rows.delete()
    assert durable[1] - durable[0] == plain[1] - plain[0] > 0


@pytest.mark.skipif(pgbouncer.missing() is not None, reason=str(pgbouncer.missing()))
def test_no_statement_is_prepared_behind_a_pooler(pooled):
    rows = make_things("postgres", 60)
    operation = counts.using(databases=("postgres",), transaction="object", workers=4, chunksize=5)
    report = operation.map(rows, run=Run("pooled", using="postgres"))
    assert (report.succeeded, report.run.status) == (60, "finished")
    assert [*Thing.objects.using("postgres").values_list("visits", flat=True)] == [1] * 60


def test_function_may_have_prepared_statements_forgotten():
    rows = make_things("postgres", 20)
    report = forgets_statements.using(transaction="object").map(rows, run=Run("forgotten", using="postgres"))
    assert (report.succeeded, report.run.status) == (20, "finished")
    assert visited("postgres") == dict.fromkeys(range(1, 21), 1)


def refers_to_nobody(row, alias):
    Thing.objects.using(alias).filter(pk=row.pk).update(visits=5, owner_id=10**6 if row.pk == 7 else None)


@pytest.mark.parametrize("transaction", ["object", "chunk"])
def test_constraint_checked_by_commit_fails_its_object_alone(transaction):
    rows = make_things("postgres", 12)
    operation = pooled_operation(refers_to_nobody, transaction=transaction, databases=("postgres",), chunksize=4)
    operation = operation.using(progress=False, workers=2, start_method="fork").bind(alias="postgres")
    report = operation.map(rows, run=Run("deferred", using="postgres"))
    assert (report.succeeded, report.failed, report.run.status) == (11, 1, "finished with failures")
    (failure,) = ledger("postgres", "deferred")[2]
    assert (failure.key, failure.sqlstate) == ("7", "23503")


def test_keys_reach_the_ledger_as_they_are(alias):
    for number, name in enumerate(["it's", "back\\slash", "50 %", "%s", '"', "ünïcode", "$1", "a;b", "\\"]):
        run = Run(f"key {number}", using=alias, key=lambda name: name)
        operation = writes_entry.using(databases=(alias,), executor="serial").bind(alias=alias, tag=str(number))
        assert operation.map([name], run=run).run.done == 1
        assert [json.loads(high) for _low, high, *_ in ledger(alias, f"key {number}")[1]] == [name]
    assert entries(alias) == [*range(number + 1)]


@pooled_operation(progress=False, transaction="object")
def writes_entry(name, alias, tag):
    AuditEntry.objects.using(alias).create(actor="named", tag=tag)
