"""Whether a test wants every pool to run inline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["overrides", "switch"]

_wishes: list[None] = []
"""One for each time that it was begun and not ended; a list, since its methods are atomic."""


def switch(*, on: bool) -> None:
    """Begin or end it; the last of several ends ends it."""
    if on:
        _wishes.append(None)
    else:
        _wishes.pop()


def overrides() -> Mapping[str, Any]:
    """The options that win over all others: nothing enforces a timeout in the caller's own thread."""
    return {"executor": "serial", "start_method": None, "timeout": None} if _wishes else {}
