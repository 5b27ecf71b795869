"""Kills at any moment in a Dask cluster, of workers and of the scheduler: every row exactly once, and nothing lost.

`pytest -m chaos` kills hundreds of workers and twenty schedulers.
"""

import asyncio
import os
import random
import subprocess
import sys
from contextlib import nullcontext, suppress

import dask
import distributed  # noqa: F401  its defaults have to be there before one is changed, or they go with the change
import psutil
import pytest

from poolsave import Run, executors
from poolsave.ledger.models import Run as LedgerRun
from tests.support import dask_cluster
from tests.support.durable import counts, counts_unless_killed, entries, ledger, make_things, visited
from tests.support.pools import dask_pool

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")
ALIAS, NAME, WORKERS = "postgres", "far", 2


class OwnCluster:
    """A cluster whose scheduler may be killed."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.dask_cluster", str(WORKERS), "1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **dask_cluster.QUIET},
        )
        self.address = self._process.stdout.readline().strip()

    def worker_processes(self):
        children = psutil.Process(self._process.pid).children()
        return [child for child in children if _is_worker(child)]

    def kill_worker(self, pid):
        """Kill a worker that has answered: three in a row that are being set up would end the run. Another comes up."""
        for process in self.worker_processes():
            if process.pid == pid:
                process.kill()
                return True
        return False  # it has died before its answer was read

    def kill_scheduler(self):
        self._orphans = self.worker_processes()
        self._process.kill()

    def end(self):
        workers = getattr(self, "_orphans", None) or self.worker_processes()
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        for worker in workers:  # they end by themselves, which takes a while
            with suppress(psutil.NoSuchProcess):
                worker.kill()
        psutil.wait_procs(workers, timeout=30)


class SharedCluster(OwnCluster):
    """That of all tests, which takes no time to start. Other workers come up for those that are killed."""

    def __init__(self):
        self.address = dask_cluster.address_of(WORKERS, 1)

    def worker_processes(self):
        children = [child for pid in dask_cluster.belongings()[0] for child in psutil.Process(pid).children()]
        return [child for child in children if _is_worker(child)]

    def end(self):
        pass


def _is_worker(process):
    with suppress(psutil.NoSuchProcess):
        return "distributed.cli.dask_worker" in process.cmdline()
    return False


def killer(cluster, *, workers, scheduler, every):
    """Give a callable for `on_outcome` that kills workers now and then, then the scheduler; and what it has done."""
    killed = {"workers": 0, "scheduler": 0, "outcomes": 0}

    def kill(outcome):
        killed["outcomes"] += 1
        if killed["workers"] < workers:
            if random.random() < 1 / every:
                killed["workers"] += cluster.kill_worker(outcome.worker)
        elif scheduler and not killed["scheduler"] and random.random() < 1 / every:
            cluster.kill_scheduler()
            killed["scheduler"] = 1

    return kill, killed


def session(things, transaction, *, chunksize, workers, scheduler, every):
    """Run what is left; gives what was killed. A session whose scheduler is killed has an error."""
    cluster = OwnCluster() if scheduler else SharedCluster()
    kill, killed = killer(cluster, workers=workers, scheduler=scheduler, every=every)
    operation = counts.using(
        transaction=transaction, databases=(ALIAS,), chunksize=chunksize, workers=WORKERS, start_method=None,
        executor=executors.DaskExecutor(cluster.address),
    )  # fmt: skip
    try:
        with pytest.raises((OSError, asyncio.CancelledError, Exception)) if scheduler else nullcontext():
            assert operation.map(things, run=Run(NAME, using=ALIAS), on_outcome=kill).lost == 0
    finally:
        cluster.end()
    assert killed["scheduler"] == scheduler
    return killed


def run_to_the_end(transaction, *, rows, chunksize, schedulers, workers_each, every):
    things = make_things(ALIAS, rows)
    total = {"workers": 0, "scheduler": 0}
    while LedgerRun.objects.using(ALIAS).filter(name=NAME, status__startswith="finished").first() is None:
        scheduler = total["scheduler"] < schedulers
        killed = session(
            things, transaction, chunksize=chunksize, workers=workers_each, scheduler=scheduler, every=every
        )
        total = {what: total[what] + killed[what] for what in total}
    again = counts.using(transaction="object", databases=(ALIAS,), workers=1)  # those that were hit three times
    again.map(things, run=Run(NAME, using=ALIAS, retry={}))
    assert visited(ALIAS) == dict.fromkeys(range(1, rows + 1), 1)
    assert entries(ALIAS) == [*range(1, rows + 1)]
    run, ranges, failures = ledger(ALIAS, NAME)
    assert [each[:2] for each in ranges] == [("", str(rows))]
    assert (run.done + run.failed, run.skipped) == (rows, 0)
    assert [failure for failure in failures if failure.resolved_at is None] == []
    print(transaction, rows, "rows;", total, "killed;", run.failed, "failed at first")
    return total


@pytest.mark.timeout(300)
def test_killed_workers_and_scheduler_cost_nothing_but_time():
    with dask.config.set({"distributed.comm.timeouts.connect": "3s"}):  # how long a client looks for its scheduler
        total = run_to_the_end("chunk", rows=200, chunksize=5, schedulers=1, workers_each=1, every=15)
    assert total["scheduler"] == 1
    assert total["workers"] >= 1


@pytest.mark.chaos
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("transaction", ["object", "chunk"])
def test_hundreds_of_killed_workers_and_twenty_schedulers(transaction):
    run_to_the_end(transaction, rows=200_000, chunksize=20, schedulers=20, workers_each=24, every=350)


@pytest.mark.parametrize("transaction", ["chunk", "object"])
def test_worker_that_dies_on_dask_costs_only_time(transaction, tmp_path):
    rows = make_things("postgres", 30)
    with dask_pool(2, 1) as options:
        operation = counts_unless_killed.using(**options, databases=("postgres",), transaction=transaction, chunksize=6)
        report = operation.bind(folder=str(tmp_path), deadly=(9,)).map(rows, run="on-dask")
    assert (report.succeeded, report.lost, report.run.status) == (30, 0, "finished")
    assert (tmp_path / "9").exists()
    assert visited("postgres") == dict.fromkeys(range(1, 31), 1)
    assert entries("postgres") == [*range(1, 31)]
    assert ledger("postgres", "on-dask")[1] == [("", "30", 30, 0, 0)]
