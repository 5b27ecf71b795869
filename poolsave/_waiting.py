"""One thread that waits for several executors at once."""

from __future__ import annotations

import selectors
import threading
from collections.abc import Iterable
from typing import Any

from .executors import Executor
from .executors._channels import Waker

__all__ = ["Bell"]

HEARTBEAT = 0.1
"""Seconds after which executors are looked at in any case: for time-outs, and for workers whose end nobody told."""
PATROL = 0.005
"""Seconds between looks at an executor that cannot say when it has something to tell."""


class Bell:
    """Rings when one of the executors has something to tell, or somebody calls `ring`."""

    def __init__(self) -> None:
        self._waker = Waker()
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._waker.reader, selectors.EVENT_READ, None)
        self._silent: list[Executor] = []
        self._there = True

    def listen_to(self, executor: Any) -> None:
        """Be rung by an executor that has been started."""
        descriptor: int = executor.fileno() if hasattr(executor, "fileno") else -1
        if descriptor >= 0:
            self._selector.register(descriptor, selectors.EVENT_READ, None)
        elif hasattr(executor, "on_event"):
            executor.on_event = self.ring
        elif not executor.inline:
            self._silent.append(executor)

    def ring(self) -> None:
        """End a `wait`, now or the next one. Callable from any thread, and after `close`."""
        with self._lock:
            self.ring_from_signal()

    def ring_from_signal(self) -> None:
        """The same in the thread that waits, which closes the bell itself, and may hold the lock just now."""
        if self._there:
            self._waker.wake()

    def wait(self, busy: Iterable[Executor]) -> None:
        """Wait for something to happen."""
        patrol = any(one is executor for executor in self._silent for one in busy)
        ready = self._selector.select(PATROL if patrol else HEARTBEAT)
        if any(key.fd == self._waker.reader for key, _mask in ready):
            self._waker.clear()

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._there = False
            self._selector.close()
            self._waker.close()
