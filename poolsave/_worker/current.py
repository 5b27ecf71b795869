"""`poolsave.current()`: which object of a durable run this thread is at."""

from __future__ import annotations

import threading

__all__ = ["Current", "current"]


class Current(threading.local):
    """What a function can ask about the object that it is called for."""

    key: str | None = None
    """In a durable run "name:key", the same in each try and each session, to hand to services outside as the
    idempotency key; elsewhere None."""

    def __repr__(self) -> str:
        return f"<Current key={self.key!r}>"


_current = Current()


def current() -> Current:
    """Give what is known of the object that this thread is at.

    Example:
        >>> current().key is None   # outside of a durable run
        True
    """
    return _current
