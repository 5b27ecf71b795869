"""Failures wait in the ledger, and a retry runs exactly their objects, in the transaction that resolves each."""

import pytest

from poolsave import Run
from poolsave.ledger.models import Failure
from tests.models import Thing
from tests.support.durable import counts, counts_input, entries, ledger, make_things, visited

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


def allow(*keys, alias):
    """What fails is marked in the rows, since a run's constants stay the same."""
    Thing.objects.using(alias).filter(pk__in=keys).update(group=0)


@pytest.mark.parametrize("transaction", ["chunk", "object"])
def test_retry_runs_exactly_the_failures_that_wait(alias, transaction):
    rows = make_things(alias, 40)
    rows.filter(pk__in=[3, 17, 18, 40]).update(group=5)
    operation = counts.using(transaction=transaction, databases=(alias,), chunksize=9)
    assert operation.map(rows, run=Run("tried", using=alias)).failed == 4
    allow(17, 18, 40, alias=alias)
    rows.filter(pk=40).delete()

    report = operation.map(rows, run=Run("tried", using=alias, retry={"keys": ["17", "18", "3"]}))

    assert (report.total, report.succeeded, report.run.status) == (3, 2, "finished with failures")
    failures = ledger(alias, "tried")[2]
    told = {each.key: (each.attempts, each.resolution, bool(each.resolved_at)) for each in failures}
    assert told == {"3": (2, "", False), "17": (1, "retried", True), "18": (1, "retried", True), "40": (1, "", False)}
    allow(3, alias=alias)
    last = operation.map(rows, run=Run("tried", using=alias, retry={}))
    assert (last.total, last.succeeded, last.skipped, last.run.status) == (2, 1, 1, "finished")
    assert {each.key: each.resolution for each in ledger(alias, "tried")[2]} == {
        "3": "retried", "17": "retried", "18": "retried", "40": "gone"
    }  # fmt: skip
    assert visited(alias) == dict.fromkeys(range(1, 40), 1)
    assert entries(alias) == [*range(1, 40)]
    assert operation.map(rows, run=Run("tried", using=alias, retry={})).total == 0


def told_of(run):
    """Status and unresolved failures, by SQL."""
    row, _ranges, failures = ledger("default", run)
    return row.status, sum(failure.resolved_at is None for failure in failures)


def test_ok_is_said_of_the_whole_run_and_not_of_one_call():
    rows = make_things("default", 12)
    rows.filter(pk__in=[3, 7]).update(group=5)
    operation = counts.using(executor="serial", databases=("default",))
    paused = operation.using(max_failures=1).map(rows, run="night")
    assert (paused.ok, paused.run.unresolved, told_of("night")) == (False, 1, ("paused", 1))
    ended = operation.map(rows, run="night")
    after = operation.map(rows, run="night")
    for report in (ended, after):
        assert (report.ok, report.run.status, report.run.unresolved) == (False, *told_of("night"))
    assert after.total == 0
    assert "2 failed (2 unresolved)" in str(after)
    allow(3, 7, alias="default")
    one = operation.map(rows, run=Run("night", retry={"keys": ["3"]}))
    assert (one.succeeded, one.ok, told_of("night")) == (1, False, ("finished with failures", 1))
    mended = operation.map(rows, run=Run("night", retry={}))
    for report in (mended, operation.map(rows, run="night")):
        assert (report.ok, report.run.failed, report.run.unresolved, told_of("night")) == (True, 2, 0, ("finished", 0))
        assert "2 failed (0 unresolved)" in str(report)


@pytest.mark.parametrize("transaction", ["chunk", "object"])
def test_input_with_keys_goes_on_and_is_tried_again(alias, transaction):
    make_things(alias, 30)
    rows = [{"pk": pk, "ref": f"row {pk}"} for pk in range(30, 0, -1)]
    operation = counts_input.using(transaction=transaction, databases=(alias,), chunksize=4).bind(alias=alias)
    Thing.objects.using(alias).filter(pk__in=[7, 21]).update(group=5)
    run = Run("input", using=alias, key=lambda row: row["ref"])
    first = operation.using(max_failures=1).map(iter(rows), run=run)
    assert (first.run.status, first.run.stop_code) == ("paused", "failures")
    second = operation.map(iter(rows), run=run)
    assert (second.run.status, second.run.done, second.run.failed) == ("finished with failures", 28, 2)
    assert sorted(each.key for each in ledger(alias, "input")[2]) == ['"row 21"', '"row 7"']
    allow(7, 21, alias=alias)
    again = Run("input", using=alias, key=run.key, retry={})
    assert operation.map(iter(rows), run=again).run.status == "finished"
    assert visited(alias) == dict.fromkeys(range(1, 31), 1)


def test_failures_of_one_cause_are_grouped_in_either_mode():
    rows = make_things("postgres", 12)
    rows.filter(pk__in=[2, 9]).update(group=5)
    for transaction in ("chunk", "object"):
        counts.using(transaction=transaction, databases=("postgres",)).map(rows, run=transaction)
    causes = Failure.objects.using("postgres").values_list("cause", flat=True)
    assert (len(causes), len(set(causes))) == (4, 1)


def test_key_is_the_same_in_each_try_and_session():
    make_things("postgres", 6)
    rows = [{"pk": pk} for pk in range(1, 7)]
    Thing.objects.using("postgres").filter(pk=4).update(group=5)
    operation = counts_input.using(databases=("postgres",), executor="serial").bind(alias="postgres")
    run = Run("keys", using="postgres", key=lambda row: row["pk"])
    operation.map(rows, run=run)
    Thing.objects.using("postgres").update(group=0)
    operation.map(rows, run=Run("keys", using="postgres", key=run.key, retry={}))
    from tests.models import AuditEntry

    keys = AuditEntry.objects.using("postgres").values_list("actor", flat=True)
    assert sorted(keys) == [f"keys:{pk}" for pk in range(1, 7)]


def test_retry_of_a_key_tries_none_that_differs_in_case(alias):
    items = [{"pk": 1, "name": "a"}, {"pk": 2, "name": "A"}, {"pk": 3, "name": "a "}]
    rows = make_things(alias, 3)
    rows.update(group=5)
    operation = counts_input.using(databases=(alias,)).bind(alias=alias)

    def run(**options):
        return Run("cased", using=alias, key=lambda item: item["name"], **options)

    assert operation.map(items, run=run()).run.failed == 3
    rows.update(group=0)
    assert operation.map(items, run=run(retry={"keys": ['"A"']})).succeeded == 1
    assert visited(alias) == {1: 0, 2: 1, 3: 0}
