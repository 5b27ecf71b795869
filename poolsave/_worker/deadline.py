"""The soft end of an object that takes too long: an exception in it, so that its transaction is rolled back."""

from __future__ import annotations

import signal
from types import FrameType

from ..errors import TimedOut


class Deadline:
    """While entered, raises TimedOut after so many seconds. For the main thread of a worker process only.

    It comes as soon as Python runs: a driver that waits in C for the server is not interrupted (psycopg2 is one), and
    code that catches every exception goes on. The executor ends such a worker a moment later.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._armed = False
        signal.signal(signal.SIGALRM, self._expire)

    def _expire(self, _signum: int, _frame: FrameType | None) -> None:
        if self._armed:  # else it came in the last moment, when the object had ended
            raise TimedOut(self._seconds)

    def __enter__(self) -> None:
        self._armed = True
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(self, *_exc_info: object) -> None:
        self._armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
