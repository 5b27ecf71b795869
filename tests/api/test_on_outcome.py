"""`on_outcome` is called in the caller with each outcome as it comes in, and what it raises ends the run."""

import os
import signal
import threading

import pytest

from poolsave import InvalidOption, Status, pooled_operation
from poolsave.executors import SerialExecutor
from tests.support import operations, pools


def each_way(operation, number, on_outcome, **options):
    """Give a report for each way to map."""
    operation = operation.using(**options)
    pipeline = operation | operations.doubles.using(**options)
    yield operation.map(range(number), on_outcome=on_outcome)
    yield operation.starmap([(index,) for index in range(number)], on_outcome=on_outcome)
    yield pipeline.map(range(number), on_outcome=on_outcome)
    yield pipeline.starmap([(index,) for index in range(number)], on_outcome=on_outcome)


@pytest.mark.parametrize("executor", ["serial", "thread", "fork"])
def test_each_outcome_is_given_in_the_callers_thread(executor):
    given = []

    def take(outcome):
        assert (os.getpid(), threading.current_thread()) == (here, this)
        given.append(outcome)

    here, this = os.getpid(), threading.current_thread()
    for report in each_way(operations.fails_on_odd, 9, take, **pools.POOLS[executor], chunksize=2):
        assert sorted(outcome.index for outcome in given) == list(range(9))
        assert max(outcome.item for outcome in given if not outcome.ok) in (7, (7,))
        assert sum(outcome.status is Status.FAILED for outcome in given) == report.failed == 4
        given.clear()


def test_an_outcome_is_given_before_the_input_goes_on():
    log = []

    def numbers():
        for number in range(3):
            log.append(f"read {number}")
            yield number

    operation = operations.doubles.using(executor="serial", chunksize=1, window=1)
    operation.map(numbers(), on_outcome=lambda outcome: log.append(f"ended {outcome.index}"))
    assert log == ["read 0", "ended 0", "read 1", "ended 1", "read 2", "ended 2"]


@pytest.mark.parametrize("executor", ["serial", "thread", "fork"])
@pytest.mark.parametrize("way", range(4))
def test_what_it_raises_ends_the_run_with_the_report(executor, way):
    def fail(outcome):
        calls.append(outcome)
        raise ConnectionError("the disk is full")

    calls = []
    options = {**pools.POOLS[executor], "chunksize": 1, "window": 4}
    ways = each_way(operations.doubles, 1000, lambda outcome: None if skipping else fail(outcome), **options)
    skipping = True
    for _ in range(way):
        next(ways)
    skipping = False
    with pytest.raises(ConnectionError, match="the disk is full") as caught:
        next(ways)
    report = caught.value.report
    assert len(calls) == 1
    assert report.finished
    assert 0 < report.total == report.succeeded + report.skipped < 50
    assert report.stopped == "ConnectionError in the caller"


@pytest.mark.parametrize("wrong", [3, "path", []])
def test_what_cannot_be_called_is_refused_by_its_value(wrong):
    read = []
    with pytest.raises(InvalidOption, match=r"on_outcome=.* is not valid: give a callable that takes an Outcome"):
        operations.doubles.map(map(read.append, range(3)), on_outcome=wrong)
    assert not read


class Queueing(SerialExecutor):
    """Is sent the next chunk before it has run the first one."""

    workers = 2


def interrupts(number):
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("numbers", [range(10), iter(range(10))], ids=["range", "iterator"])
def test_skipped_objects_are_given_too(numbers):
    operation = pooled_operation(interrupts, executor=Queueing(), chunksize=1, transaction=None, progress=False)
    given = []
    with pytest.raises(KeyboardInterrupt) as caught:
        operation.map(numbers, on_outcome=given.append)
    assert [outcome.status for outcome in given] == [Status.SUCCEEDED, Status.SKIPPED]
    assert (caught.value.report.total, caught.value.report.skipped) == (2, 1)


@pytest.mark.parametrize("executor", ["serial", "thread", "fork"])
def test_second_interrupt_ends_the_callable(executor):
    steps = []

    def interrupt_twice(_outcome):
        steps.append("first")
        signal.raise_signal(signal.SIGINT)
        steps.append("second")
        signal.raise_signal(signal.SIGINT)
        steps.append("never")

    with pytest.raises(KeyboardInterrupt) as caught:
        operations.doubles.using(**pools.POOLS[executor], chunksize=1).map(range(9), on_outcome=interrupt_twice)
    assert steps == ["first", "second"]
    report = caught.value.report
    assert report.finished
    assert report.stopped == "interrupted"
