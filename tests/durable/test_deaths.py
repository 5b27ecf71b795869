"""A worker that dies costs nothing but time, and a session that has lost the lease commits nothing."""

import os
import signal

import pytest
from django.db import transaction

from poolsave import LeaseLost, RowGone, Run, Status, pooled_operation
from poolsave.ledger.models import Lease
from tests.models import Thing
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


@pooled_operation(progress=False, workers=1, start_method="fork", chunksize=5, transaction="chunk")
def dies_after_commit(row):
    """Deletes two rows of the second chunk, whose worker dies when the chunk is committed."""
    if row.pk == 1:
        Thing.objects.using("postgres").filter(pk__in=[6, 8]).delete()
    row.visits += 1
    row.save()
    if row.pk == 9:
        transaction.on_commit(lambda: os.kill(os.getpid(), signal.SIGKILL), using="postgres")


def test_deleted_rows_of_a_dead_worker_are_skipped():
    rows = make_things("postgres", 10)
    told = []
    report = dies_after_commit.using(databases=("postgres",)).map(rows, run="gone", on_outcome=told.append)
    run, ranges, failures = ledger("postgres", "gone")
    assert (report.succeeded, report.skipped, run.done, run.skipped) == (8, 2, 8, 2)
    skipped = {each.index: type(each.error) for each in told if each.status is Status.SKIPPED}
    assert skipped == {5: RowGone, 7: RowGone}
    assert ranges == [("", "10", 8, 0, 2)]
    assert {each.key for each in failures} <= {"7", "9", "10"}  # of a transaction it is known that it has callbacks
    assert all("may not have run, if it has any" in each.message for each in failures)
    assert visited("postgres") == dict.fromkeys([1, 2, 3, 4, 5, 7, 9, 10], 1)


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
