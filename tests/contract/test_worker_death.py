"""A worker that is killed or stopped: every object ends in one outcome, and none of them lies about the database.

An executor that `blames_exactly` loses the object that its worker was at, and goes on. Dask loses what its worker had,
and goes on. Any other may lose all that was in flight; then the run ends with the executor's own error, which has the
report.
"""

import os
import signal
from concurrent.futures import BrokenExecutor, wait
from contextlib import nullcontext

import psutil
import pytest
from django.db import connections

from poolsave import InvalidOption, OperationsFailed, Status, TimedOut, ValueLost, WorkerDied, concurrent_saves
from poolsave.executors import DaskExecutor
from tests.conftest import wait_until
from tests.contract import cases
from tests.models import Badge, Person, Tag
from tests.support import operations
from tests.support.chaos import End, audit, found_in
from tests.support.pools import goes_on, those
from tests.support.postgres import IN_COMMIT

with_processes = pytest.mark.parametrize("pool", those(lambda executor: not executor.shares_memory), indirect=True)
with_database = pytest.mark.django_db(transaction=True, databases="__all__")
LOCK_WAIT_TIMEOUT, DEADLOCK = 1205, 1213
"""Numbers of MariaDB's errors."""


def report_of(run, promises):
    """The report of a run in which one worker is killed."""
    if goes_on(promises):
        return run()
    with pytest.raises(BrokenExecutor) as caught:
        run()
    report = caught.value.report
    assert report.lost >= 1
    assert "lost a chunk" in report.stopped
    return report


@with_processes
@pytest.mark.parametrize("chunksize", [1, 4, 20])
def test_no_object_is_begun_twice_though_its_worker_is_killed(pool, promises, chunksize, tmp_path):
    assert promises.at_most_once
    operation = cases.leaves_a_trace.using(**pool, chunksize=chunksize, keep="all")
    report = report_of(lambda: operation.bind(folder=str(tmp_path), deadly=3).map(range(20)), promises)
    begun = {int(file.name): len(file.read_text()) for file in tmp_path.iterdir()}
    # What shares a death with another may die between the making of a trace and the writing into it.
    assert set(begun.values()) <= ({1} if promises.blames_exactly else {0, 1})
    outcomes = {outcome.index: outcome for outcome in report}
    assert sorted(outcomes) == list(range(report.total))
    assert outcomes[3].status is Status.LOST  # without a transaction nobody can know
    for outcome in report:
        if outcome.ok:
            assert outcome.index in begun
            assert outcome.value == outcome.index or isinstance(outcome.error, ValueLost)
        if outcome.status is Status.SKIPPED:
            assert outcome.index not in begun
    if goes_on(promises):
        assert report.total == 20
        assert all(isinstance(lost.error, WorkerDied) and lost.item == lost.error.item for lost in report.failures)
    if promises.blames_exactly:
        (lost,) = report.failures
        assert (lost.error.signal, lost.error.exitcode, lost.error.item) == ("SIGKILL", -9, 3)
        assert "SIGKILL" in str(lost.error)
        assert (report.total, report.succeeded) == (20, 19)


@with_processes
def test_a_stream_gives_every_outcome_though_a_worker_is_killed(pool, promises, tmp_path):
    """What ends the run is raised after the last of them."""
    seen = []
    stream = cases.leaves_a_trace.using(**pool).bind(folder=str(tmp_path), deadly=3).stream(range(20))
    with nullcontext() if goes_on(promises) else pytest.raises(BrokenExecutor) as caught:
        for outcome in stream:
            seen.append(outcome)
    assert sorted(outcome.index for outcome in seen) == list(range(len(seen)))
    assert len(seen) == (20 if goes_on(promises) else caught.value.report.total)


def told(report, status):
    return [outcome for outcome in report if outcome.status is status]


@with_database
@with_processes
def test_killed_while_running_inside_its_transaction(pool, promises, alias):
    """Where the blame is exact, its work is known to be rolled back, so that the object failed and is not lost."""
    check_killed_while_running(cases.saves_all_and_dies.using(**pool), promises, alias)


@with_database
@with_processes
def test_killed_while_running_with_rows_that_wait(pool, promises):
    batched = cases.saves_all_and_dies.using(**pool, transaction="chunk", batch_writes=True)
    check_killed_while_running(batched, promises, "postgres")


def check_killed_while_running(operation, promises, alias):
    Tag.objects.using(alias).create(name="member")
    operation = operation.using(databases=(alias,), chunksize=4, keep="all")
    names = [f"p{number}" for number in range(12)]
    report = report_of(lambda: operation.bind(alias=alias, deadly="p5").map(names), promises)
    ends = [End(outcome.item, outcome.status) for outcome in report]
    assert [end.name for end in ends] == names[: report.total]
    counts = audit(ends, found_in(alias), signed=names)  # any of them may be lost where the blame is not exact
    assert sum(counts.values()) == report.total == report.succeeded + report.failed + report.lost + report.skipped
    assert not Person.objects.using(alias).filter(name="p5").exists()
    if promises.blames_exactly:
        (failed,) = report.failures
        assert (failed.item, failed.status) == ("p5", Status.FAILED)
        assert counts == {Status.SUCCEEDED: 11, Status.FAILED: 1}
    else:
        # How far it came is unknown. What fails waits in vain for locks that the dead one still has.
        failed = told(report, Status.FAILED)
        assert not failed or alias == "mariadb"
        assert {outcome.error.args[0] for outcome in failed} <= {LOCK_WAIT_TIMEOUT, DEADLOCK}


@with_processes
def test_killed_while_idle(pool, promises):
    """No object is lost; an executor that cannot go on ends the run at once, instead of waiting."""
    with nullcontext() if goes_on(promises) else pytest.raises(BrokenExecutor):
        with concurrent_saves(**pool, workers=1, transaction=None, on_failure="collect") as saves:
            pid, _name = saves.submit(operations.process_and_thread, 1).result(30)
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: has_ended(pid))
            second = saves.submit(operations.process_and_thread, 1)
            wait([second], 30)
            if isinstance(promises, DaskExecutor) and second.exception() is not None:
                assert isinstance(second.exception(), WorkerDied)  # it was sent before the scheduler noticed
            elif goes_on(promises):
                assert second.result()[0] != pid
            else:
                assert second.exception() is not None
    if not isinstance(promises, DaskExecutor):
        assert saves.report.succeeded == (2 if goes_on(promises) else 1)
    assert saves.report.total == 2


def has_ended(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def sessions_in_commit():
    with connections["postgres"].cursor() as cursor:
        cursor.execute(IN_COMMIT)
        return cursor.fetchone()[0]


@with_database
@with_processes
def test_killed_while_committing(pool, promises, slow_commit, tmp_path):
    """The server goes on with the COMMIT though its client is gone: the object is lost, and never failed."""
    path = tmp_path / "pid"
    expected = OperationsFailed if goes_on(promises) else BrokenExecutor
    with pytest.raises(expected):
        with concurrent_saves(**pool, workers=1, chunksize=1, databases=("postgres",)) as saves:
            future = saves.submit(operations.saves_and_tells_who, "slow", str(path))
            wait_until(lambda: path.exists() and sessions_in_commit(), seconds=30)
            os.kill(int(path.read_text()), signal.SIGKILL)
            assert isinstance(future.exception(30), WorkerDied if goes_on(promises) else BrokenExecutor)
            if goes_on(promises):
                saves.submit(operations.saves_and_tells_who, "next", str(path)).result(30)
    assert saves.report.lost == 1
    assert saves.report.failed == 0
    assert saves.report.total == 1 + saves.report.succeeded
    wait_until(lambda: not sessions_in_commit())
    wait_until(Person.objects.using("postgres").filter(name="slow").exists)
    assert Badge.objects.using("postgres").count() == 1 + saves.report.succeeded


@pytest.mark.parametrize("pool", those(lambda executor: executor.enforces_timeout), indirect=True)
def test_stopped_and_so_deaf_to_its_time_out(pool):
    """SIGSTOP: nothing inside the worker runs any more, so that it has to be ended from outside."""
    report = cases.does.using(**pool, timeout=0.2, chunksize=4).map(["a", "stopped", "c", "d"])
    (late,) = report.failures
    assert (late.item, type(late.error)) == ("stopped", TimedOut)
    assert late.error.__cause__.signal == "SIGKILL"
    assert report.succeeded == 3


@pytest.mark.parametrize("pool", those(lambda executor: not executor.enforces_timeout), indirect=True)
def test_a_time_out_that_cannot_be_kept_is_refused(pool):
    with pytest.raises(InvalidOption, match=r"timeout=1.*process"):
        operations.doubles.using(**pool, timeout=1).map([1])
