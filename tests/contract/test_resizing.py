"""Executors that can add and retire workers while they run keep every other promise meanwhile."""

import itertools
import multiprocessing
import threading

import pytest

from poolsave import Status
from poolsave.errors import WorkerDied
from poolsave.executors import create, is_resizable
from tests.support import operations
from tests.support.pools import EXECUTORS, POOLS
from tests.support.sizes import Sizes

RESIZABLE = ["thread", "fork", "forkserver", "spawn"]
OPEN = {"workers": (1, 9), "chunksize": 1}


@pytest.fixture
def sizes(monkeypatch):
    return Sizes(monkeypatch)


def test_these_executors_can_change_their_number():
    own = {name for name in POOLS if is_resizable(create(POOLS[name]["executor"]))}
    assert own == {*RESIZABLE}
    assert not any(is_resizable(EXECUTORS[name].promises) for name in EXECUTORS.keys() - {*RESIZABLE})


@pytest.mark.parametrize("name", RESIZABLE)
def test_added_workers_work_and_retired_ones_are_gone(sizes, name):
    indexes, workers = set(), set()
    with operations.process_and_thread.using(**POOLS[name], **OPEN).stream(itertools.count()) as outcomes:
        for outcome in outcomes:
            assert outcome.ok
            assert outcome.index not in indexes
            indexes.add(outcome.index)
            workers.add(outcome.value)
            sizes.wanted = max(sizes.wanted, 3) if len(workers) < 3 else 1
            if len(workers) == 3 and sizes.executor.workers == alive(sizes.executor) == 1:
                break
    assert len(workers) == 3
    assert outcomes.report.succeeded + outcomes.report.skipped == outcomes.report.total >= len(indexes)
    assert not multiprocessing.active_children()


def alive(executor):
    if executor.shares_memory:
        return sum(thread.name.startswith("poolsave-") for thread in threading.enumerate())
    return sum(worker.is_alive() for worker in executor._workers)


def test_deaths_are_blamed_exactly_while_workers_come_and_go(sizes):
    """Without a transaction what ran when its worker died is lost, and that is one object each time."""
    numbers = itertools.cycle([3, 1, 2])

    def names():
        for number in range(300):
            sizes.wanted = next(numbers)
            yield "bad" if number % 60 == 30 else f"name {number}"

    report = operations.crashes.using(**POOLS["fork"], **OPEN | {"chunksize": 4}).map(names())
    assert report.total == 300
    assert [failure.index for failure in report.failures] == [*range(30, 300, 60)]
    assert {(failure.status, type(failure.error)) for failure in report.failures} == {(Status.LOST, WorkerDied)}


def test_a_worker_that_cannot_be_set_up_costs_nothing(sizes):
    refuses = []

    def hook():
        if refuses:
            raise RuntimeError("not one more")

    def numbers():
        for number in itertools.count():
            if number == 5:
                refuses.append(True)
                sizes.wanted = 3
            if sizes.refused:
                return
            yield number

    report = operations.doubles.using(**POOLS["fork"], **OPEN, after_fork=hook).map(numbers())
    assert sizes.refused >= 1
    assert report.ok
    assert sizes.executor.workers <= 1


def test_a_hook_that_raises_in_the_caller_costs_nothing(sizes):
    calls = []

    def hook():
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("not now")

    def numbers():
        for number in itertools.count():
            sizes.wanted = 2 if number == 5 else sizes.wanted
            if sizes.refused:
                return
            yield number

    assert operations.doubles.using(**POOLS["fork"], **OPEN, before_fork=hook).map(numbers()).ok
    assert sizes.refused == 1


def test_nothing_is_forked_beside_another_thread(sizes):
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    reached = set()

    def numbers():
        for number in range(200):
            if number == 20:
                other.start()
                sizes.wanted = 4
            if sizes.executor is not None:
                reached.add(sizes.executor.workers + sizes.executor.joining)
            yield number

    try:
        report = operations.process_and_thread.using(**POOLS["fork"], **OPEN).map(numbers())
    finally:
        done.set()
        other.join()
    assert report.ok
    assert reached == {1}


@pytest.mark.parametrize("name", ["thread", "fork", "spawn"])
def test_a_run_that_ends_while_workers_join_leaves_nothing(sizes, name):
    with operations.doubles.using(**POOLS[name], **OPEN).stream(itertools.count()) as outcomes:
        for outcome in outcomes:
            assert outcome.ok
            sizes.wanted = 3
            if sizes.executor is not None and sizes.executor.joining:
                break
    assert not multiprocessing.active_children()
    assert not any(thread.name.startswith("poolsave-") for thread in threading.enumerate())
    assert outcomes.report.succeeded + outcomes.report.skipped == outcomes.report.total
