"""Kills at any moment, of workers and of callers: every row exactly once, nothing lost, and the ledger says so.

The function must not run twice for a row: it adds 1, and a receiver writes a row. The right values are plain counts of
the tables. `pytest -m chaos` kills a thousand workers and two hundred callers.
"""

import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import threading
import time

import pytest
from django.db import connections

from poolsave import Run, WorkerDied
from tests.models import Thing
from tests.support.durable import counts, entries, ledger, make_things, visited
from tests.support.processes import workers_of

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")
MODES = ["chunk", "object"]
ENDED = ("finished", "finished with failures")


def operation_of(alias, transaction, **more):
    return counts.using(**{"transaction": transaction, "databases": (alias,), "chunksize": 5, "workers": 3, **more})


def kill_workers(limit):
    """Give a callable for `on_outcome` that kills a worker now and then, and what it has killed."""
    chance, killed = random.Random(), []

    def kill(_outcome):
        if len(killed) < limit and chance.random() < 0.2:
            time.sleep(chance.uniform(0, 0.004))
            workers = workers_of(os.getpid())
            for worker in chance.sample(workers, min(1, len(workers))):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
                    killed.append(worker)

    return kill, killed


def check_once(alias, name, rows):
    """Try the failures again, of objects that were hit three times, and hold everything against the tables."""
    operation_of(alias, "object").map(rows, run=Run(name, using=alias, retry={}))
    number = rows.count()
    assert visited(alias) == dict.fromkeys(range(1, number + 1), 1)
    assert entries(alias) == [*range(1, number + 1)]
    run, ranges, failures = ledger(alias, name)
    assert [each[:2] for each in ranges] == [("", str(number))]
    assert (run.done + run.failed, run.skipped, run.total) == (number, 0, number)
    assert [failure for failure in failures if failure.resolved_at is None] == []
    assert run.failed == len(failures)


def kill_workers_until(alias, transaction, *, rows, kills):
    things = make_things(alias, rows)
    kill, killed = kill_workers(kills)
    report = None
    while report is None:
        # A session ends if three workers in a row die before their first object. Another one goes on.
        with contextlib.suppress(WorkerDied):
            report = operation_of(alias, transaction).map(things, run=Run("hit", using=alias), on_outcome=kill)
    assert killed
    assert (report.lost, report.run.status in ENDED) == (0, True)
    assert report.run.done == sum(visited(alias).values()) == len(entries(alias))
    check_once(alias, "hit", things)
    return len(killed)


def caller(alias, transaction, due):
    """Work on the run, and be killed soon after so many outcomes."""
    rows, outcomes = Thing.objects.using(alias).all(), itertools.count(1)

    def be_killed(_outcome):
        if next(outcomes) == due:
            threading.Timer(random.uniform(0, 0.004), os.kill, [os.getpid(), signal.SIGKILL]).start()

    operation_of(alias, transaction).map(rows, run=Run("orphaned", using=alias), on_outcome=be_killed)


def kill_callers_until(alias, transaction, *, rows, kills):
    things = make_things(alias, rows)
    killed = 0
    for left in range(kills, 0, -1):
        due = random.randint(1, max(1, things.filter(visits=0).count() // (left + 1)))
        connections.close_all()
        process = multiprocessing.get_context("fork").Process(target=caller, args=(alias, transaction, due))
        process.start()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    report = operation_of(alias, transaction).map(things, run=Run("orphaned", using=alias))
    assert (report.lost, report.run.status in ENDED) == (0, True)
    check_once(alias, "orphaned", things)
    return killed


@pytest.mark.parametrize("transaction", MODES)
def test_killed_workers_cost_nothing_but_time(alias, transaction):
    kill_workers_until(alias, transaction, rows=60, kills=3)


@pytest.mark.parametrize("transaction", MODES)
def test_killed_callers_cost_nothing_but_time(alias, transaction):
    assert kill_callers_until(alias, transaction, rows=150, kills=2)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("transaction", MODES)
def test_a_thousand_killed_workers(alias, transaction):
    print(alias, transaction, kill_workers_until(alias, transaction, rows=4000, kills=170), "workers killed")


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("transaction", MODES)
def test_two_hundred_killed_callers(alias, transaction):
    print(alias, transaction, kill_callers_until(alias, transaction, rows=20_000, kills=34), "callers killed")
