"""The queue by which other threads hand events to the one that drives an executor."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any


class EventQueueExecutor:
    """The base of executors whose events come from other threads. Its abilities are the least that an executor has."""

    shares_memory = False
    inline = False
    enforces_timeout = False
    blames_exactly = False
    can_kill = False
    at_most_once = True
    on_event: Callable[[], None] | None = None

    def _clear_events(self) -> None:
        # Its put() may be called by a signal handler of the thread that is in get().
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def _emit(self, event: Any) -> None:
        """From any thread."""
        self._queue.put(event)
        if self.on_event is not None:
            self.on_event()

    def _take_events(self, timeout: float | None) -> list[Any]:
        """Take all events, waiting for the first one."""
        events = []
        try:
            event = self._queue.get(timeout=timeout)
            while True:
                if event is not None:
                    events.append(event)
                event = self._queue.get_nowait()
        except queue.Empty:
            return events

    def wake(self) -> None:
        self._queue.put(None)

    def halt(self) -> None:
        raise NotImplementedError

    def kill(self) -> None:
        """Like `halt`: what runs cannot be ended from outside."""
        self.halt()
