"""How long a worker has needed a CPU. Its session reads the clock once per reply; the rest of its time it waits."""

from __future__ import annotations

import os
import time
from contextlib import suppress

SCHEDULER_STATISTICS = "/proc/thread-self/schedstat"
"""On Linux: nanoseconds of this thread on a CPU and in line for one, and how many times it got one."""


class CpuClock:
    """Gives the seconds in which the worker had a CPU, and those in which it stood in line for one (0.0 where the
    system does not say).

    A thread that stands in line does not wait for a database, and more of them would make the line longer. Made in the
    thread that it is for.
    """

    def __init__(self, *, own_process: bool) -> None:
        self._used = time.process_time if own_process else time.thread_time
        self._fd = -1
        with suppress(OSError):
            self._fd = os.open(SCHEDULER_STATISTICS, os.O_RDONLY | os.O_CLOEXEC)

    def __call__(self) -> tuple[float, float]:
        return self._used(), self._in_line()

    def _in_line(self) -> float:
        if self._fd < 0:
            return 0.0
        try:
            return int(os.pread(self._fd, 64, 0).split()[1]) / 1e9
        except (OSError, ValueError, IndexError):  # a function has closed descriptors that are not its own
            self._fd = -1
            return 0.0

    def close(self) -> None:
        if self._fd >= 0:
            with suppress(OSError):
                os.close(self._fd)
            self._fd = -1
