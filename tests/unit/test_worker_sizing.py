"""What is measured of workers whose number may change, with answers that are given."""

import sys

import pytest

from poolsave._engine import sizing
from poolsave._reports.statistics import Statistics
from poolsave._worker.replies import WorkerTime
from poolsave.options import WorkerRange


class Pool:
    """Notes how many workers it was asked for."""

    joining = 0

    def __init__(self, *, shares_memory):
        self.workers, self.shares_memory = 2, shares_memory

    def resize(self, workers):
        self.workers = workers


class Job:
    def __init__(self, room=None):
        self.room_for_workers = lambda: room


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    monkeypatch.setattr(sizing, "available_cpus", lambda: 2)
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: True, raising=False)


def sized(*answers, shares_memory=False, room=None):
    """How many workers there are after each of two has given these answers, and thousands of objects are left."""
    pool = Pool(shares_memory=shares_memory)
    measured = sizing.WorkerSizing(pool, Job(room), WorkerRange(2, 32), Statistics())
    for answer in answers:
        for worker in ("one", "other"):
            measured.answered(worker, answer, 10)
        measured.maybe_resize(ended=40, left=10_000, chunksize=1)
    return pool.workers


def seconds(worked, computed=0.0, in_line=0.0, waited=0.0):
    return WorkerTime(waited, worked, 0.0, computed=computed, in_line=in_line)


WARM_UP = seconds(sizing.WARM_UP)


def test_a_short_window_is_enough_for_the_first_growth():
    assert sized(WARM_UP, seconds(0.05, computed=0.01)) == 15
    assert sized(WARM_UP, seconds(0.03, computed=0.01)) == 2


def test_a_growth_is_told_though_nothing_is_left():
    pool, statistics = Pool(shares_memory=False), Statistics()
    measured = sizing.WorkerSizing(pool, Job(), WorkerRange(2, 32), statistics)
    pool.workers = 3
    measured.maybe_resize(ended=40, left=0, chunksize=1)
    assert [each.workers for each in statistics.resizings] == [3]


def test_the_first_moments_do_not_count():
    assert sized(seconds(0.04, computed=0.04)) == sized(WARM_UP) == 2


def test_a_long_chunk_counts_as_it_has_little_of_them():
    assert sized(seconds(0.2, computed=0.04, waited=1.0)) == 15


def test_processes_in_line_leave_room_for_more():
    assert sized(WARM_UP, seconds(0.064, computed=0.016, in_line=0.032)) == 6


def test_threads_in_line_keep_the_lock_from_others():
    """For nearly all of each one's time: together they use the one lock up."""
    assert sized(WARM_UP, seconds(0.064, computed=0.016, in_line=0.04), shares_memory=True) == 2


def test_threads_get_twice_the_spare_of_processes():
    assert sized(WARM_UP, seconds(0.064, computed=0.016), shares_memory=True) == 12
    assert sized(WARM_UP, seconds(0.064, computed=0.032)) == 6


@pytest.mark.parametrize(("room", "workers"), [(0, 2), (3, 5), (30, 15)])
def test_the_room_of_the_databases_bounds_a_growth(room, workers):
    assert sized(WARM_UP, seconds(0.05, computed=0.01), room=room) == workers
