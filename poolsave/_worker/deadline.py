"""The time-out of an object: a clock that the executor watches, and an exception in what the object runs.

The clock runs from before BEGIN until COMMIT and the `on_commit` callbacks are done, further tries included. The
exception comes only where the object's own code runs: inside of COMMIT it would leave open whether the object was
saved. What does not end by it the executor ends a moment later, together with the worker.

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

AT_ONCE = 0.000001
"""Seconds; an alarm after 0 would never come."""
LEAST_FOR_CALLBACKS = 0.5
"""Seconds that each `on_commit` callback gets, however late its object is, since the object is saved by then. The
executor waits longer than that."""


class NoDeadline:
    """For objects that may take as long as they like."""

    def start(self, marks: Marks, *, objects: int = 1) -> None:
        """An object begins, or what is done for so many of them at once."""

    def stop(self, marks: Marks) -> None:
        """It has ended."""

    def comes_within(self, seconds: float) -> bool:
        """Whether there is no time left for a pause."""
        return False

    def function(self) -> AbstractContextManager[None]:
        """Around the user's function."""
        return nullcontext()

    def callback(self) -> AbstractContextManager[None]:
        """Around an `on_commit` callback."""
        return nullcontext()


class Deadline(NoDeadline):
    """For the main thread of a worker process only.

    The exception comes as soon as Python runs: a driver that waits in C for the server is not interrupted (psycopg2 is
    one), and code that catches every exception goes on.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._ends = 0.0
        signal.signal(signal.SIGALRM, _expire)

    def start(self, marks: Marks, *, objects: int = 1) -> None:
        began = time.monotonic() + (objects - 1) * self._timeout
        self._ends = began + self._timeout
        marks.clock(began)

    def stop(self, marks: Marks) -> None:
        marks.clock(0.0)

    def comes_within(self, seconds: float) -> bool:
        return time.monotonic() + seconds >= self._ends

    def function(self) -> AbstractContextManager[None]:
        return _Alarm(self._timeout, max(AT_ONCE, self._ends - time.monotonic()))

    def callback(self) -> AbstractContextManager[None]:
        return _Alarm(self._timeout, max(LEAST_FOR_CALLBACKS, self._ends - time.monotonic()))


class _Alarm:
    armed: ClassVar[float | None] = None
    """The time-out that is told when the alarm of this process comes; None: it came in the last moment, when what it
    was for had ended."""

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
