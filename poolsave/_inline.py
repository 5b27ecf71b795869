"""Whether a test wants every pool to run inline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

INLINE: Mapping[str, Any] = {"executor": "serial", "start_method": None, "timeout": None}
"""Options by which everything runs in the caller's own thread, where nothing could enforce a timeout."""
_wishes: list[None] = []
"""One for each time that it was begun and not ended; a list, since its methods are atomic."""


def switch(*, on: bool) -> None:
    """Begin or end it; the last of several ends ends it."""
    if on:
        _wishes.append(None)
    else:
        _wishes.pop()


def overrides() -> Mapping[str, Any]:
    """The options that win over all others."""
    return INLINE if _wishes else {}
