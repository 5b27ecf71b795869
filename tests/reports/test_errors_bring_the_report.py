"""An error that ends a run brings its report along, in which each object that was read has one outcome."""

import concurrent.futures
import os
import signal
import sys

import pytest

from poolsave import Status, concurrent_saves, executors, pooled_operation
from poolsave.errors import ValueLost
from tests.contract.hostile import Frozen, HidesItsCause


class Exits:
    """Ends the caller when it is pickled there."""

    def __reduce__(self):
        sys.exit("no more")


class ExitsWhenRestored:
    """Can be restored in a worker."""

    def __init__(self, caller):
        self.caller = caller

    def __reduce__(self):
        return restore, (self.caller,)


def restore(caller):
    return sys.exit("no more") if os.getpid() == caller else ExitsWhenRestored(caller)


@pooled_operation(workers=2, chunksize=2, progress=False, transaction=None, start_method="fork")
def doubles(number):
    return 2 * number


@pooled_operation(workers=2, chunksize=2, progress=False, transaction=None, start_method="fork")
def gives_what_exits(number):
    return ExitsWhenRestored(os.getppid()) if number == 3 else number


def fails(error):
    def tell(done, _total):
        if done >= 4:
            raise error

    return tell


def interrupts(_done, _total):
    signal.raise_signal(signal.SIGINT)


def run_block(operation, objects, **options):
    with concurrent_saves(**{"workers": 2, "transaction": None, "progress": False, **options}) as saves:
        return saves.map(operation, objects)


WAYS = {
    "map": lambda operation, objects, **options: operation.using(**options).map(objects),
    "starmap": lambda operation, objects, **options: operation.using(**options).starmap((one,) for one in objects),
    "stream": lambda operation, objects, **options: [*operation.using(**options).stream(objects)],
    "ordered stream": lambda operation, objects, **options: [*operation.using(**options).stream(objects, ordered=True)],
    "pipeline": lambda operation, objects, **options: (operation | doubles).using(**options).map(objects),
    "auto": lambda operation, objects, **options: operation.using(executor="auto", **options).map(objects),
    "serial": lambda operation, objects, **options: operation.using(executor="serial", **options).map(objects),
    "thread": lambda operation, objects, **options: operation.using(executor="thread", **options).map(objects),
}


def check(caught, *, at_least=0):
    report = caught.value.report
    assert report.succeeded >= at_least
    assert report.total == report.succeeded + report.skipped + report.failed + report.lost
    assert report.lost == 0
    return report


@pytest.mark.parametrize("error", [ConnectionError("the page is gone"), Frozen(), SystemExit(3)], ids=repr)
@pytest.mark.parametrize("way", WAYS)
def test_error_of_the_progress_callable_brings_the_report(way, error):
    with pytest.raises(type(error)) as caught:
        WAYS[way](doubles, range(20), progress=fails(error))
    check(caught, at_least=4)


@pytest.mark.parametrize("executor", ["process", "thread", "serial"])
def test_error_of_the_progress_of_a_block_brings_the_report(executor):
    with pytest.raises(ConnectionError) as caught:
        run_block(doubles, range(20), executor=executor, progress=fails(ConnectionError("the page is gone")))
    check(caught, at_least=4)


@pytest.mark.parametrize("way", ["map", "starmap", "stream", "pipeline"])
def test_exit_while_an_object_is_pickled_brings_the_report(way):
    with pytest.raises(SystemExit, match="no more") as caught:
        WAYS[way](doubles, [1, 2, 3, 4, Exits(), 5])
    assert check(caught).total >= 5


def test_a_value_that_exits_when_it_is_restored_is_lost_alone():
    report = gives_what_exits.map(range(6))
    assert (report.succeeded, report.total, report.stopped) == (6, 6, None)
    (flawed,) = report.flawed
    assert flawed.index == 3
    assert type(flawed.error) is ValueLost
    assert type(flawed.error.__cause__) is SystemExit


@pytest.mark.parametrize("way", ["map", "stream", "pipeline"])
def test_worker_that_cannot_be_started_brings_the_report(way):
    def refuse():
        raise OSError("no process")

    with pytest.raises(OSError, match="no process") as caught:
        WAYS[way](doubles, range(6), before_fork=refuse)
    assert check(caught).total == 0
    with pytest.raises(OSError, match="no process") as caught:
        WAYS[way](doubles, range(6), after_fork=refuse)
    assert check(caught).succeeded == 0


def test_second_interrupt_of_a_serial_run_brings_the_report():
    with pytest.raises(KeyboardInterrupt) as caught:
        doubles.using(executor="serial", progress=interrupts).map(range(6))
    report = check(caught, at_least=4)
    assert report.stopped == "interrupted"


@pytest.mark.parametrize("error", [LookupError("no more"), Frozen(), GeneratorExit()], ids=repr)
def test_error_of_the_input_brings_the_report(error):
    def breaks_off():
        yield from range(4)
        raise error

    for run in WAYS.values():
        with pytest.raises(type(error)) as caught:
            run(doubles, breaks_off())
        assert check(caught).succeeded == 4
    with pytest.raises(type(error)) as caught:
        run_block(doubles, breaks_off())
    assert check(caught).succeeded == 4


def test_an_error_with_a_report_of_its_own_has_it_in_vars():
    with pytest.raises(HidesItsCause) as caught:
        doubles.using(progress=fails(HidesItsCause())).map(range(6))
    assert vars(caught.value)["report"].succeeded >= 4


class Breaks(executors.ThreadExecutor):
    """A project's own executor, whose `wait` raises."""

    def wait(self, timeout):
        raise Frozen


def test_error_of_a_foreign_executor_brings_the_report():
    foreign = concurrent.futures.ThreadPoolExecutor(1)
    submit, calls = foreign.submit, []

    def submit_once(*call):
        if calls:
            raise Frozen
        calls.append(call)
        return submit(*call)

    foreign.submit = submit_once
    with foreign, pytest.raises(Frozen) as caught:
        doubles.using(executor=foreign).map(range(6))
    assert check(caught).succeeded == 2


def test_broken_executor_leaves_no_object_without_an_outcome():
    with pytest.raises(Frozen) as caught:
        doubles.using(executor=Breaks()).map(range(6))
    report = caught.value.report
    assert report.total == report.lost + report.skipped
    assert {failure.status for failure in report.failures} == {Status.LOST}
