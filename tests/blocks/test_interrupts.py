"""Ctrl-C at any instant while a block is entered or left, or `map` starts, raises KeyboardInterrupt and leaves nothing.

SIGINT is raised at one line after the other of poolsave's own code, as far as that runs in the caller's thread; that no
process, thread or descriptor is left is what a fixture looks for after each test.
"""

import gc
import signal
import sys
from pathlib import Path

import pytest

import poolsave
from poolsave import concurrent_saves, pooled_operation
from tests.support import operations

HOME = str(Path(poolsave.__file__).parent)
OPTIONS = {"workers": 1, "transaction": None, "progress": False, "start_method": "fork"}
SAMPLES = 12


class LineCounter:
    """Counts lines of poolsave's in this thread while it is entered, and raises SIGINT at one of them."""

    def __init__(self, at=None):
        self.lines = 0
        self._at = at

    def __enter__(self):
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_error):
        sys.settrace(None)

    def _trace(self, frame, _event, _argument):
        return self._line if frame.f_code.co_filename.startswith(HOME) else None

    def _line(self, _frame, event, _argument):
        if event == "line":
            self.lines += 1
            if self.lines == self._at:
                signal.raise_signal(signal.SIGINT)
        return self._line


def enters(executor, counter):
    with counter:
        block = concurrent_saves(executor=executor, **OPTIONS)
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


def maps(executor, counter):
    with counter:
        pooled_operation(operations.doubles.func, executor=executor, **OPTIONS).map([1])


@pytest.mark.parametrize("executor", ["process", "thread", "serial"])
@pytest.mark.parametrize("act", [enters, leaves, maps])
def test_interrupt_at_any_line_leaves_nothing(act, executor):
    everything = LineCounter()
    act(executor, everything)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    for line in (*range(1, everything.lines, everything.lines // SAMPLES), everything.lines - 10):
        interrupted(act, executor, line)
        gc.collect()
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def interrupted(act, executor, line):
    counter = LineCounter(line)
    try:
        act(executor, counter)
    except KeyboardInterrupt:
        return
    finally:
        sys.settrace(None)
    assert counter.lines < line  # it took fewer lines than the first time
