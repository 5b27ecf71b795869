"""Ctrl-C at any instant, also while a block is entered or left, leaves the report with the traceback and nothing else.

SIGINT is raised at one line after the other of poolsave's own code, as far as that runs in the caller's thread; that no
process, thread or descriptor is left is what a fixture looks for after each test.
"""

import gc
import logging
import signal
import sys
import threading
from pathlib import Path

import pytest

import poolsave
from poolsave import concurrent_saves, pooled_operation
from tests.support import operations

HOME = str(Path(poolsave.__file__).parent)
OPTIONS = {"workers": 1, "transaction": None, "progress": False, "start_method": "fork"}
SAMPLES = 8


@pytest.fixture(autouse=True, scope="module")
def frozen():
    """Garbage is collected a thousand times here, which takes long if it is among all that earlier tests have left."""
    gc.collect()
    gc.freeze()


class LineCounter:
    """Counts lines of poolsave's in this thread while it is entered, and raises SIGINT at one of them."""

    def __init__(self, at=None, *, times=1):
        self.lines = 0
        self._at = at
        self._times = times

    def __enter__(self):
        gc.collect()
        gc.disable()  # or what an earlier block has left may be finalized at one of the lines
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_error):
        sys.settrace(None)
        gc.enable()

    def _trace(self, frame, _event, _argument):
        return self._line if frame.f_code.co_filename.startswith(HOME) else None

    def _line(self, _frame, event, _argument):
        if event == "line":
            self.lines += 1
            if self.lines == self._at:
                for _time in range(self._times):
                    signal.raise_signal(signal.SIGINT)
        return self._line


def enters(executor, counter):
    block = concurrent_saves(executor=executor, **OPTIONS)
    with counter:
        saves = block.__enter__()
    with saves_of(block, saves):
        pass


class saves_of:  # noqa: N801
    """The rest of a with statement whose block has been entered."""

    def __init__(self, block, saves):
        self._block, self._saves = block, saves

    def __enter__(self):
        return self._saves

    def __exit__(self, *error):
        self._block.__exit__(*error)


def leaves(executor, counter):
    with concurrent_saves(executor=executor, **OPTIONS) as saves:
        saves.submit(operations.doubles, 1)
        counter.__enter__()
    counter.__exit__()


def doubling(executor):
    return pooled_operation(operations.doubles.func, executor=executor, **OPTIONS)


def maps(executor, counter):
    operation = doubling(executor)
    with counter:
        operation.map([1])


def maps_stages(executor, counter):
    pipeline = doubling(executor) | doubling(executor)
    with counter:
        pipeline.map([1], on_outcome=id)


def begins_a_stream(executor, counter):
    operation = doubling(executor)
    with counter:
        operation.stream([1])


def streams(executor, counter):
    with doubling(executor).stream([1]) as outcomes, counter:
        for _outcome in outcomes:
            pass


def leaves_a_stream(executor, counter):
    with doubling(executor).stream([1, 2]) as outcomes:
        next(outcomes)
        counter.__enter__()
    counter.__exit__()


def test_thread_that_begins_after_an_interrupt_does_nothing(monkeypatch, caplog):
    """The interrupt comes when the system has made the driver's thread, and has not yet let it run."""

    class BeginsLate(threading.Thread):
        def start(self):
            late.append(self)
            raise KeyboardInterrupt

    late = []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(threading, "Thread", BeginsLate)
        with concurrent_saves(executor="process", **OPTIONS):
            pass
    caplog.set_level(logging.INFO, "poolsave")
    caplog.clear()
    late[0].run()
    assert caplog.records == []  # it would close the block a second time, and say so


ACTS = [enters, leaves, maps, maps_stages, begins_a_stream, streams, leaves_a_stream]
OUTSIDE = 6
"""Lines at either end that no code of poolsave's can guard: those of a call that has just begun, or has ended."""


@pytest.mark.parametrize("executor", ["process", "thread", "serial"])
@pytest.mark.parametrize("act", ACTS)
def test_interrupt_at_any_line_leaves_a_report_and_nothing_else(act, executor):
    everything = LineCounter()
    act(executor, everything)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    for line in (*range(1, everything.lines, everything.lines // SAMPLES), everything.lines - 10):
        error = interrupted(act, executor, line)
        if error is not None and OUTSIDE < line < everything.lines - OUTSIDE:
            (note,) = error.__notes__
            assert note == str(error.report)
            assert error.report.finished
        del error
        gc.collect()
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def maps_in_series(operation):
    operation.map([1, 2, 3])


def fills_a_block_in_series(operation):
    with concurrent_saves(executor="serial", **OPTIONS) as saves:
        for number in range(3):
            saves.submit(operation, number)


def maps_in_a_block(operation):
    with concurrent_saves(executor="serial", **OPTIONS) as saves:
        saves.map(operation, range(3))


@pytest.mark.parametrize("act", [maps_in_series, fills_a_block_in_series, maps_in_a_block])
def test_two_interrupts_at_any_line_drop_no_outcome(act):
    ran = []
    operation = pooled_operation(ran.append, executor="serial", **OPTIONS)
    everything = LineCounter()
    with everything:
        act(operation)
    for line in range(1, everything.lines, 3):
        ran.clear()
        with pytest.raises(KeyboardInterrupt) as caught, LineCounter(line, times=2):
            act(operation)
            raise KeyboardInterrupt  # it took fewer lines
        report = getattr(caught.value, "report", None)
        if report is not None:
            assert report.succeeded + report.failed + report.lost >= len(ran), line


def interrupted(act, executor, line):
    counter = LineCounter(line)
    try:
        act(executor, counter)
    except KeyboardInterrupt as error:
        return error.with_traceback(None)
    finally:
        sys.settrace(None)
    assert counter.lines < line  # it took fewer lines than the first time
    return None
