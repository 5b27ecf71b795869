"""A worker that dies in a stage costs the object that it was at, and each outcome names the stage it ended in."""

import os
import signal
from concurrent.futures.process import BrokenProcessPool

import pytest

from poolsave import Status, TimedOut, ValueLost, WorkerDied, executors, pooled_operation
from poolsave.executors.protocol import UNKNOWN, Died
from tests.support import stages
from tests.support.stages import FORK, THREAD, saved_names, sums_up

with_database = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("fused", [True, False])
def test_worker_death_costs_one_object_and_names_its_stage(place, fused):
    operations = [stages.kills_on.bind(victim=8 if number == place else -1) for number in range(3)]
    pipeline = operations[0] | operations[1].using(workers=2 if fused else 1) | operations[2]
    report = pipeline.using(chunksize=1, **FORK).map(range(0, 20, 2))
    assert report.values == [number for number in range(0, 20, 2) if number != 8]
    (lost,) = report.failures
    assert (lost.status, lost.item, lost.index, lost.stage) == (Status.LOST, 8, 4, "kills_on")
    assert isinstance(lost.error, WorkerDied)
    assert lost.error.item == 8
    rows = report.stages
    assert [row.lost for row in rows] == [number == place for number in range(3)]
    assert sums_up(report)


@pytest.mark.parametrize("fused", [True, False])
def test_timeout_names_the_stage(fused):
    last = stages.sleeps_on.using(workers=2 if fused else 1, timeout=1)
    first = stages.doubles.using(timeout=1)
    report = (first | last.bind(victim=4)).using(chunksize=1, **FORK).map(range(4))
    (late,) = report.failures
    assert (type(late.error), late.stage, late.item) == (TimedOut, "sleeps_on", 2)
    assert "in sleeps_on" in late.traceback  # by an exception, and not by a signal that the worker dies of
    assert report.values == [0, 2, 6]


@with_database
@pytest.mark.parametrize("fused", [True, False])
def test_worker_death_in_a_transaction_leaves_nothing_of_it(fused):
    save = stages.saves_name.bind(kill="name 3").using(workers=2 if fused else 1)
    report = (stages.names | save).using(chunksize=1, **FORK).map(range(6))
    (failure,) = report.failures
    assert (failure.status, failure.item, failure.stage) == (Status.FAILED, 3, "saves_name")
    assert failure.error.item == 3  # and not "name 3", which it had become by then
    assert saved_names() == [f"name {number}" for number in range(6) if number != 3]
    assert report.failed_items() == [3]
    assert sums_up(report)


@with_database
def test_worker_death_in_a_segment_costs_the_values_in_between():
    """Their first stage stays committed, so none of them is safe to feed again."""
    second = stages.saves_second.bind(kill=2).using(transaction="chunk")
    report = (stages.saves_first | second).using(workers=1, chunksize=4, **FORK).map(range(8))
    # The first stage of all four is committed; that of the second is rolled back for all four.
    assert saved_names() == [f"first {number}" for number in range(8)] + [f"second {number}" for number in range(4, 8)]
    assert [(one.item, one.status, one.stage) for one in report.failures] == [
        (number, Status.FAILED, "saves_second") for number in range(4)
    ]
    assert report.values == [4, 5, 6, 7]
    assert report.failed_items() == []
    assert sums_up(report)


@with_database
def test_only_the_object_that_a_killed_worker_was_at_is_blamed():
    """Objects have failed in two stages, all others have gone on, and the worker dies at one of these."""
    saves = stages.saves_name.bind(fail=["name 3", "name 4"]).using(transaction="chunk")
    first = stages.kills_on.bind(victim=-1) | stages.raises_on.bind(victim=10)
    pipeline = first | stages.names | saves | stages.kills_when_saved.bind(name="name 1")
    report = pipeline.using(workers=1, chunksize=8, **FORK).map([0, 1, 3, 10, 2, 4])
    told = {one.item: one for one in report.failures}
    blamed = [one.item for one in told.values() if isinstance(one.error, WorkerDied) and not one.error.afterwards]
    assert blamed == [1]
    assert (told[1].error.item, told[1].stage, told[1].status) == (1, "kills_when_saved", Status.LOST)
    for number in (3, 4, 10):  # what is before that object has been answered for
        assert told[number].stage == ("raises_on" if number == 10 else "saves_name")
        assert told[number].status is Status.FAILED
        assert "after it had finished this object" in str(told[number].error)
        assert any("its own error was lost" in note for note in told[number].error.__notes__)
    assert saved_names() == ["name 0", "name 1", "name 2"]
    assert sorted(report.failed_items()) == [3, 4, 10]
    assert sums_up(report)


@with_database
def test_worker_death_blames_only_the_object_that_it_was_at():
    """Not one that was rolled back with it, and not one whose stage never began."""
    second = stages.saves_second.bind(kill=2).using(transaction="chunk")
    report = (stages.doubles | second).using(workers=1, chunksize=4, **FORK).map(range(4))
    told = {one.item: one.error for one in report.failures}
    assert told[1].item == 1
    assert told[0].afterwards
    assert "rolled back with the transaction" in told[0].__notes__[0]
    assert [str(told[number]) for number in (2, 3)] == [
        f"the stage 'saves_second' never began: the value that it needs for object {number} was lost"
        for number in (2, 3)
    ]
    assert "after it had finished this object" in str(told[3].__cause__)


class Vague(executors.ProcessExecutor):
    """Reports a death without marks, as an executor that cannot see them."""

    blames_exactly = False

    def wait(self, timeout):
        events = super().wait(timeout)
        return [
            one._replace(marks=bytes([UNKNOWN]) * len(one.marks)) if isinstance(one, Died) else one for one in events
        ]


@pytest.mark.parametrize("executor", ["process-pool", Vague(start_method="fork")])
def test_loss_in_an_unknown_stage_names_all_possible_stages(executor):
    pipeline = (stages.doubles | stages.kills_on.bind(victim=4)).using(executor=executor, workers=1, chunksize=4)
    try:
        report = pipeline.map(range(4))
    except BrokenProcessPool as error:
        report = error.report
    assert {one.stage for one in report.failures} == {"doubles + kills_on"}
    assert any("in one of the stages 'doubles', 'kills_on'" in note for note in report.failures[0].error.__notes__)
    assert [row.lost for row in report.stages] == [4 - report.succeeded, 0]  # a slow worker answers before the end
    assert sums_up(report)


@with_database
def test_value_lost_with_its_worker_fails_in_the_next_stage():
    """Its stage has committed and has not answered when the worker dies."""

    @pooled_operation(progress=False, workers=1, chunksize=4, **FORK)
    def saves_and_dies_later(number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return stages.saves_first(number)

    report = (saves_and_dies_later | stages.doubles.using(**THREAD)).map(range(4))
    assert saved_names() == ["first 0", "first 1", "first 2"]
    assert {one.stage for one in report.failures if isinstance(one.error, ValueLost)} <= {"doubles"}
    assert [one.stage for one in report.failures if isinstance(one.error, WorkerDied)] == ["saves_and_dies_later"]
    saved = [one for one in report if one.ok or isinstance(one.error, ValueLost)]
    assert len(saved) == 3
    assert sums_up(report)
    assert report.failed_items() == [3]
