"""One thread that waits for several executors at once."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from ..executors import Executor

HEARTBEAT = 0.1
"""Seconds after which executors are looked at in any case: for time-outs, and for workers whose end nobody told."""
POLL_INTERVAL = 0.005
"""Seconds between looks at an executor that cannot say when it has something to tell."""


class ExecutorSelector:
    """Rings when one of the executors has something to tell, or somebody calls `ring`."""

    def __init__(self) -> None:
        # Sockets, since pipes cannot be waited for everywhere.
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._reader, selectors.EVENT_READ, None)
        self._silent: list[Executor] = []
        self._descriptors: dict[int, int] = {}
        self._there = True

    def listen_to(self, executor: Any) -> None:
        """Be rung by an executor that has been started."""
        descriptor: int = executor.fileno() if hasattr(executor, "fileno") else -1
        if descriptor >= 0:
            self._selector.register(descriptor, selectors.EVENT_READ, None)
            self._descriptors[id(executor)] = descriptor
        elif hasattr(executor, "on_event"):
            executor.on_event = self.ring
        elif not executor.inline:
            self._silent.append(executor)

    def leave(self, executor: Any) -> None:
        """Be rung no more by an executor that has nothing left to do.

        Its idle worker may end all the same, and then its descriptor stays readable, since nobody asks it any more.
        """
        descriptor = self._descriptors.pop(id(executor), None)
        if descriptor is not None:
            self._selector.unregister(descriptor)

    def ring(self) -> None:
        """End a `wait`, now or the next one. Callable from any thread, and after `close`."""
        with self._lock:
            self.ring_from_signal()

    def ring_from_signal(self) -> None:
        """The same in the thread that waits, which closes the bell itself, and may hold the lock just now."""
        if self._there:
            with suppress(BlockingIOError):  # full: it will ring anyway
                self._writer.send(b"!")

    def wait(self, busy: Iterable[Executor]) -> None:
        """Wait for something to happen."""
        patrol = any(one is executor for executor in self._silent for one in busy)
        ready = self._selector.select(POLL_INTERVAL if patrol else HEARTBEAT)
        if any(key.fileobj is self._reader for key, _mask in ready):
            self._reader.recv(4096)

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._there = False
            self._selector.close()
            self._reader.close()
            self._writer.close()
