"""Times of workers and objects add up, and a hint names what kept workers idle: with figures that are given."""

import pickle
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolsave._reports.batches import OutcomeBatch
from poolsave._reports.statistics import MIN_BUSY_SHARE, SLOW_SECONDS, SLOWEST_SHOWN, Statistics
from poolsave._worker.replies import EndTimes, WorkerTime

times = st.floats(0, 10, allow_nan=False)


def batch(first, seconds, worker="w"):
    return OutcomeBatch(first, [None] * len(seconds), array("d", seconds), list(range(len(seconds))), worker, {})


def answered(statistics, worker, *seconds, first=0, waited=0.0, committed=0.0):
    spent = WorkerTime(waited, sum(seconds), committed, longest=max(seconds))
    statistics.answered(worker, spent, batch(first, seconds, worker))


@given(st.lists(st.lists(times, min_size=1, max_size=6), min_size=1, max_size=20))
def test_slowest_objects_are_true_and_in_order(answers):
    statistics = Statistics()
    first = 0
    for seconds in answers:
        answered(statistics, "w", *seconds, first=first)
        first += len(seconds)
    everything = [one for seconds in answers for one in seconds]
    found = statistics.slowest
    assert len(found) == min(SLOWEST_SHOWN, len(everything))
    assert [one.seconds for one in found] == sorted((one.seconds for one in found), reverse=True)
    if len(everything) <= SLOWEST_SHOWN:
        assert sorted(one.seconds for one in found) == sorted(everything)
    assert all(everything[one.index] == one.seconds for one in found)
    assert max(everything) <= max(found[0].seconds, SLOW_SECONDS)


@given(times, st.lists(times, min_size=1))
def test_durations_are_the_differences_of_the_end_times(started, lengths):
    ends, now = array("d"), started
    for length in lengths:
        now += length
        ends.append(now)
    durations = pickle.loads(pickle.dumps(EndTimes(started, ends)))
    assert list(durations) == [durations[place] for place in range(len(durations))]
    assert len(durations) == len(lengths)
    assert sum(durations) == pytest.approx(now - started, abs=1e-6)


def test_slow_object_among_many_quick_ones_is_found():
    statistics = Statistics()
    for number in range(100):
        answered(statistics, "w", *[1e-6] * 100, first=100 * number)
    answered(statistics, "w", *[1e-6] * 50, 0.5, *[1e-6] * 50, first=10_000)
    assert (statistics.slowest[0].index, statistics.slowest[0].seconds) == (10_050, 0.5)


def test_times_of_a_worker_are_counted_once():
    statistics = Statistics()
    statistics.started("w", 0.25)
    answered(statistics, "w", 1.0, 2.0, waited=0.5, committed=0.75)
    statistics.died("w")
    statistics.finish()
    (one,) = statistics.workers
    assert (one.objects, one.start, one.wait, one.work, one.commit) == (2, 0.25, 0.5, 2.25, 0.75)
    assert one.busy == statistics.busy == 3.0 / 3.75


def test_a_worker_that_got_nothing_to_do_has_waited():
    statistics = Statistics()
    statistics.started("idle", 0.1)
    statistics.finish()
    (one,) = statistics.workers
    assert one.objects == 0
    assert one.wait > 0
    assert one.busy == 0


def took(statistics, seconds):
    statistics._started_at -= seconds
    statistics.finish()
    return statistics


@pytest.mark.parametrize(
    ("prepare", "word"),
    [
        (lambda one: setattr(one, "pulling", 90.0), "input"),
        (lambda one: one.started("w", 80.0), "start"),
        (lambda one: answered(one, "w", *[0.01] * 100, waited=80.0), "waited for the caller"),
    ],
)
def test_a_hint_says_what_kept_the_workers_idle(prepare, word):
    statistics = Statistics()
    answered(statistics, "w", 1.0, waited=4.0)
    statistics.died("w")
    prepare(statistics)
    assert statistics.busy < MIN_BUSY_SHARE
    assert word in took(statistics, 100).hint


def test_small_run_has_no_hint_about_the_caller():
    """Its chunks are small as long as their size is being found: that is no fault of the caller."""
    statistics = Statistics()
    answered(statistics, "w", *[0.01] * 50, waited=80.0)
    statistics.died("w")
    assert statistics.busy < MIN_BUSY_SHARE
    assert took(statistics, 100).hint is None


def test_hint_names_workers_that_wait_for_the_last_chunks():
    statistics = Statistics()
    answered(statistics, "w", 1.0)
    statistics._times["w"].last -= 60
    assert "last chunks" in took(statistics, 60).hint


def test_hint_is_left_out_for_busy_workers_and_short_runs():
    busy = Statistics()
    answered(busy, "w", 100.0)
    assert took(busy, 100).hint is None
    short = Statistics()
    answered(short, "w", 0.01, waited=0.4)
    assert short.hint is None
