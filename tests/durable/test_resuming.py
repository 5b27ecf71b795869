"""A durable run goes on exactly where it stopped, on each database, in each mode and executor."""

import pytest

from poolsave import Run
from tests.support.durable import counts, entries, ledger, make_things, visited

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


@pytest.mark.parametrize("transaction", ["chunk", "object"])
def test_run_that_stopped_goes_on_exactly_there(alias, transaction):
    rows = make_things(alias, 60)
    operation = counts.using(transaction=transaction, databases=(alias,), chunksize=7, window=14)

    first = operation.using(max_failures=1).bind(bad=[30]).map(rows, run=Run("half", using=alias))
    assert (first.run.status, first.run.stop_code) == ("paused", "failures")
    assert 1 < first.succeeded < 59
    with pytest.raises(Exception, match="began with another constants"):
        operation.map(rows, run=Run("half", using=alias))
    second = operation.bind(bad=[30]).map(rows, run=Run("half", using=alias))

    assert (second.run.status, second.run.resumed) == ("finished with failures", True)
    assert visited(alias) == {pk: int(pk != 30) for pk in range(1, 61)}
    assert entries(alias) == [pk for pk in range(1, 61) if pk != 30]
    run, ranges, failures = ledger(alias, "half")
    assert ranges == [("", "60", 59, 1, 0)]
    assert [(each.key, each.error_class, each.message, each.attempts) for each in failures] == [
        ("30", "builtins.ValueError", "not 30", 1)
    ]
    assert (run.done, run.failed, run.skipped, run.total) == (59, 1, 0, 60)
    third = operation.bind(bad=[30]).map(rows, run=Run("half", using=alias))
    assert (third.total, third.run.status) == (0, "finished with failures")


@pytest.mark.parametrize("executor", ["serial", "thread", "process"])
def test_each_executor_finishes_what_another_began(executor):
    rows = make_things("postgres", 40)
    operation = counts.using(databases=("postgres",), transaction="chunk", chunksize=6).bind(bad=[30])
    operation.using(executor="serial", max_failures=1).map(rows, run="mixed")
    operation.using(executor=executor, transaction="object", chunksize=5).map(rows, run="mixed")
    assert visited("postgres") == {pk: int(pk != 30) for pk in range(1, 41)}
    assert entries("postgres") == [pk for pk in range(1, 41) if pk != 30]
    assert ledger("postgres", "mixed")[1] == [("", "40", 39, 1, 0)]
