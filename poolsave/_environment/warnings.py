"""Warnings that point to a line of the user's code."""

from __future__ import annotations

import sys
import warnings


def warn(message: str) -> None:
    """Warn at the nearest caller outside of poolsave."""
    level = 2
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "poolsave":
        frame = frame.f_back
        level += 1
    warnings.warn(message, RuntimeWarning, stacklevel=level)
