"""Which instances are being saved: saves of the same one come one after the other, as in a loop."""

from __future__ import annotations

import threading


class InstanceLocks:
    """A lock for each instance that is being saved; instances are told apart by `is`."""

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def enter(self, instance: object, *, wait: bool) -> bool:
        """Wait until no other save of the instance is under way. False if one is, and there is to be no waiting.

        Whoever entered keeps the instance alive until `leave`, or another one could have its id.
        """
        while True:
            lock = self._locks.setdefault(id(instance), threading.Lock())
            if not lock.acquire(blocking=wait):
                return False
            if self._locks.get(id(instance)) is lock:
                return True
            lock.release()  # the save that had it has ended, and taken it away

    def leave(self, instance: object) -> None:
        """The save that entered has ended."""
        self._locks.pop(id(instance)).release()
