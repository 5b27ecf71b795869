"""The time-out of an object: a clock that the executor watches, and an exception in what the object runs.

The clock runs from before BEGIN until COMMIT and the `on_commit` callbacks are done, retries included. The exception
comes only where the object's own code runs: inside COMMIT it would leave open whether the object was saved. If the
object goes on all the same, the executor ends it a moment later, together with the worker.

    clock      |------------------------- start ... stop -------------------------|
               BEGIN   function   COMMIT   callbacks   (pause   BEGIN   function ...)
    exception          |-------|           |--------|                   |-------|
"""

from __future__ import annotations

import signal
import time
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import ClassVar

from ..errors import TimedOut
from ..executors.protocol import Marks

SHORTEST_ALARM = 0.000001
"""Seconds. `setitimer` with 0 would disarm the alarm."""
MIN_CALLBACK_TIME = 0.5
"""Seconds that each `on_commit` callback has at least, since its object is saved by then. It is less than the grace
period of the executor."""


class NoDeadline:
    """The deadline of objects without a time-out: it does nothing."""

    def start(self, marks: Marks, *, objects: int = 1) -> None:
        """An object starts, or a step for several `objects` at once."""

    def stop(self, marks: Marks) -> None:
        """The object, or the step, has ended."""

    def comes_within(self, seconds: float) -> bool:
        """Whether the deadline comes within so many seconds."""
        return False

    def function(self) -> AbstractContextManager[None]:
        """Limit the user's function."""
        return nullcontext()

    def callback(self) -> AbstractContextManager[None]:
        """Limit an `on_commit` callback."""
        return nullcontext()


class Deadline(NoDeadline):
    """A time-out by SIGALRM, for the main thread of a worker process only.

    The exception comes as soon as Python code runs. A driver that waits for the server in C is not interrupted
    (psycopg2 is one). Code that catches every exception goes on.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._ends = 0.0
        signal.signal(signal.SIGALRM, _expire)

    def start(self, marks: Marks, *, objects: int = 1) -> None:
        started = time.monotonic() + (objects - 1) * self._timeout
        self._ends = started + self._timeout
        marks.clock(started)

    def stop(self, marks: Marks) -> None:
        marks.clock(0.0)

    def comes_within(self, seconds: float) -> bool:
        return time.monotonic() + seconds >= self._ends

    def function(self) -> AbstractContextManager[None]:
        return _Alarm(self._timeout, max(SHORTEST_ALARM, self._ends - time.monotonic()))

    def callback(self) -> AbstractContextManager[None]:
        return _Alarm(self._timeout, max(MIN_CALLBACK_TIME, self._ends - time.monotonic()))


class _Alarm:
    armed: ClassVar[float | None] = None
    """The time-out for the error when the alarm comes. None: the alarm came too late, when its code had ended."""

    def __init__(self, timeout: float, seconds: float) -> None:
        self._timeout = timeout
        self._seconds = seconds

    def __enter__(self) -> None:
        _Alarm.armed = self._timeout
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(self, *_exc_info: object) -> None:
        _Alarm.armed = None
        signal.setitimer(signal.ITIMER_REAL, 0)


def _expire(_signum: int, _frame: FrameType | None) -> None:
    if _Alarm.armed is not None:
        raise TimedOut(_Alarm.armed)
