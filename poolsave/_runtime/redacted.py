"""Containers for passwords whose repr hides them from error reports.

Django's error mails and Sentry print the `repr` of every local variable. They cleanse only settings whose names they
know.
"""

from __future__ import annotations

import pickle
from typing import Any


class RedactedDict(dict[str, Any]):
    """Settings by name; the repr gives only their number."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} settings>"


class RedactedBytes(bytes):
    """A pickle with settings in it; the repr gives only its size."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


def dumps(value: object) -> RedactedBytes:
    """Pickle a value that has passwords in it."""
    return RedactedBytes(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
