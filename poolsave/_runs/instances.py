"""Which instances are being saved: saves of the same one come one after the other, as in a loop."""

from __future__ import annotations

import threading


class InstanceLocks:
    """A lock for each instance that is being saved; instances are told apart by `is`."""

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def enter(self, instance: object, *, wait: bool) -> bool:
        """Wait until no other save of the instance is under way. False if one is, and there is to be no waiting.

        The caller keeps the instance alive until `leave`. Otherwise another instance could get its id.
        """
        while True:
            lock = self._locks.setdefault(id(instance), threading.Lock())
            if not lock.acquire(blocking=wait):
                return False
            if self._locks.get(id(instance)) is lock:
                return True
            lock.release()  # the save that held it has ended, and removed it

    def leave(self, instance: object) -> None:
        """End the save that entered."""
        self._locks.pop(id(instance)).release()
