"""How long a worker has needed a CPU. Its session reads the clock once per reply; the rest of its time it waits."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress


class SchedulerStatistics:
    """What Linux counts for a thread: its seconds on a CPU, and those in line for one. Zeros on other systems."""

    def __init__(self, thread: str) -> None:
        """`thread`: "thread-self", or an id."""
        self._fd = -1
        with suppress(OSError):
            self._fd = os.open(f"/proc/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> tuple[float, float]:
        """Give both. They are zeros once the thread is gone."""
        if self._fd < 0:
            return 0.0, 0.0
        try:
            on_cpu, in_line, _times = map(int, os.pread(self._fd, 64, 0).split())
        except ProcessLookupError:
            self.close()
            return 0.0, 0.0
        except (OSError, ValueError):  # a function has closed descriptors that are not its own
            self._fd = -1
            return 0.0, 0.0
        return on_cpu / 1e9, in_line / 1e9

    def close(self) -> None:
        if self._fd >= 0:
            with suppress(OSError):
                os.close(self._fd)
            self._fd = -1


class CpuClock:
    """Gives the seconds in which the worker had a CPU, and those in which it stood in line for one (0.0 where the
    system does not say).

    A thread that stands in line does not wait for a database, and more of them would make the line longer. Made in the
    thread that it is for.
    """

    def __init__(self, *, own_process: bool, server: Callable[[], tuple[float, float]] | None = None) -> None:
        """`server` gives the same for the servers of the worker's databases, as far as these compute on this machine.
        While one of them works for the worker, the worker itself waits."""
        self._used = time.process_time if own_process else time.thread_time
        self._statistics = SchedulerStatistics("thread-self")
        self._server = server

    def __call__(self) -> tuple[float, float]:
        _on_cpu, in_line = self._statistics.read()
        if self._server is None:
            return self._used(), in_line
        on_cpu_of_server, in_line_of_server = self._server()
        return self._used() + on_cpu_of_server, in_line + in_line_of_server

    def close(self) -> None:
        self._statistics.close()
