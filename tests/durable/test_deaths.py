"""A worker that dies costs nothing but time, and a session that has lost the lease commits nothing."""

import pytest

from poolsave import LeaseLost, Run
from poolsave.ledger.models import Lease
from tests.support.durable import counts, entries, ledger, make_things, visited

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


@pytest.mark.parametrize("transaction", ["chunk", "object"])
def test_object_that_kills_each_worker_fails_alone(alias, transaction):
    operation = counts.using(transaction=transaction, databases=(alias,), chunksize=8).bind(kills=[12])
    report = operation.map(make_things(alias, 30), run=Run("deadly", using=alias))
    assert (report.failed, report.lost, report.succeeded) == (1, 0, 29)
    assert visited(alias) == {pk: int(pk != 12) for pk in range(1, 31)}
    assert entries(alias) == [pk for pk in range(1, 31) if pk != 12]
    _run, ranges, failures = ledger(alias, "deadly")
    assert ranges == [("", "30", 29, 1, 0)]
    assert [(each.key, each.error_class) for each in failures] == [("12", "poolsave.errors.WorkerDied")]


@pytest.mark.parametrize("transaction", ["chunk", "object"])
def test_nothing_commits_without_the_lease(alias, transaction):
    rows = make_things(alias, 30)

    def take_over(outcome):
        Lease.objects.using(alias).update(generation=99)

    operation = counts.using(transaction=transaction, databases=(alias,), chunksize=3, executor="serial")
    with pytest.raises(LeaseLost, match="another process has taken the run 'stolen' over") as lost:
        operation.map(rows, run=Run("stolen", using=alias), on_outcome=take_over)
    done = lost.value.report.succeeded
    assert 0 < done < 30
    assert sum(visited(alias).values()) == len(entries(alias)) == done
