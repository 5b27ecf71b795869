"""Waiting for several executors at once, in one thread. `PipelineEngine` has one; a plain run needs none."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from ..executors import Executor

HEARTBEAT = 0.1
"""Seconds after which a wait ends in any case: time-outs and some deaths of workers make no event of their own."""
POLL_INTERVAL = 0.005
"""Polling interval in seconds for executors without a file descriptor or an `on_event` callback."""


class ExecutorSelector:
    """Ends a wait when one of the executors has an event, or when `wakeup` is called."""

    def __init__(self) -> None:
        # Sockets, since `select` takes no pipes on Windows.
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._reader, selectors.EVENT_READ, None)
        self._polled: list[Executor] = []
        self._descriptors: dict[int, int] = {}
        self._open = True

    def register(self, executor: Any) -> None:
        """Wait for an executor too, which has been started."""
        descriptor: int = executor.fileno() if hasattr(executor, "fileno") else -1
        if descriptor >= 0:
            self._selector.register(descriptor, selectors.EVENT_READ, None)
            self._descriptors[id(executor)] = descriptor
        elif hasattr(executor, "on_event"):
            executor.on_event = self.wakeup
        elif not executor.inline:
            self._polled.append(executor)

    def unregister(self, executor: Any) -> None:
        """Wait no more for an executor that has nothing left to do.

        An idle worker of it may still end. Its descriptor would then stay readable, since no step reads it any more.
        """
        descriptor = self._descriptors.pop(id(executor), None)
        if descriptor is not None:
            self._selector.unregister(descriptor)

    def wakeup(self) -> None:
        """End a `wait`, now or the next one. Callable from any thread, and after `close`."""
        with self._lock:
            self.wakeup_from_signal()

    def wakeup_from_signal(self) -> None:
        """The same in a signal handler of the thread that waits and closes. No lock: that thread may hold it."""
        if self._open:
            with suppress(BlockingIOError):  # full: the wait ends anyway
                self._writer.send(b"!")

    def wait(self, busy: Iterable[Executor]) -> None:
        """Wait for something to happen."""
        poll = any(executor is polled for polled in self._polled for executor in busy)
        ready = self._selector.select(POLL_INTERVAL if poll else HEARTBEAT)
        if any(key.fileobj is self._reader for key, _mask in ready):
            self._reader.recv(4096)

    def close(self) -> None:
        """Close the sockets and the selector."""
        with self._lock:
            self._open = False
            self._selector.close()
            self._reader.close()
            self._writer.close()
