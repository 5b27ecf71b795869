"""Warnings that point to the line of the user's that they are about."""

from __future__ import annotations

import sys
import warnings


def warn(message: str) -> None:
    """Warn, as of the nearest caller that is not poolsave itself."""
    level = 2
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "poolsave":
        frame = frame.f_back
        level += 1
    warnings.warn(message, RuntimeWarning, stacklevel=level)
