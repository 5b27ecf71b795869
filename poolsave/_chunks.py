"""How many objects go into the next chunk. Pure: figures in, figures out."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Pace", "next_size"]

TARGET = 0.075
"""Seconds of work that an automatic chunk aims at: long beside the cost of a dispatch (about 0.1 ms), short enough
that a progress bar and Ctrl-C stay alive."""
SHORTEST = 0.002
"""Seconds of work below which a chunk is not cut at the tail: sending it costs more than a worker that idles so long."""
SMOOTHING = 0.8
"""Weight of the past in the average; the same damping as joblib's automatic batches."""
LARGEST = 20_000
"""The most objects in an automatic chunk, so that no-op functions do not gather memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The size of automatic chunks, and the smoothed seconds that one object takes in a worker (None: unknown)."""

    size: int = 1
    per_object: float | None = None

    def after(self, count: int, seconds: float) -> Pace:
        """Learn from a chunk of `count` objects that took `seconds` in the worker."""
        now = seconds / count
        smooth = now if self.per_object is None else SMOOTHING * self.per_object + (1 - SMOOTHING) * now
        wanted = LARGEST if smooth <= 0 else min(LARGEST, max(1, int(TARGET / smooth)))
        return Pace(size=min(wanted, 2 * max(self.size, count)), per_object=smooth)


    @property
    def least(self) -> int:
        """The size below which it is not worth while to cut a chunk."""
        return int(min(self.size, SHORTEST / self.per_object)) if self.per_object else 1


def next_size(wanted: int, *, remaining: int | None, workers: int, room: int, least: int = 1) -> int:
    """Cap a chunk by what is left, so that no worker idles behind one long chunk, and by the room in the window."""
    if remaining is not None:
        wanted = min(wanted, max(least, math.ceil(remaining / (2 * workers))))
    return max(1, min(wanted, room))
