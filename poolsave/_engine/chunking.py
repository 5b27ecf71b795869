"""How many objects go into the next chunk, and how many chunks to a worker in advance. Pure: figures in and out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

TARGET = 0.075
"""Seconds of work that an automatic chunk aims at: long beside the cost of a dispatch (about 0.1 ms), short enough
that a progress bar and Ctrl-C stay alive."""
SHORTEST = 0.002
"""Seconds of work below which a chunk is not cut at the tail: sending more of them costs as much as idling so long."""
SMOOTHING = 0.8
"""Weight of the past in the average; the same damping as joblib's automatic batches."""
LARGEST = 20_000
"""The most objects in an automatic chunk, so that no-op functions do not gather memory."""
RECOVERY = 8
"""After a time-out of the server the limit grows by this part of itself with every chunk that passes."""
CHUNKS_PER_WORKER = 4
"""Chunks in flight per worker, at most, if no window is set."""
LEAD_FACTOR = 2
"""How many times what the next stage can have in flight a stage may have in flight and waiting for it."""
MIN_LEAD_PER_WORKER = 4
"""Objects per worker that are never too many."""
SHORT_CHUNK, SHORTEST_CHUNK = 0.02, 0.001
"""Seconds: a worker that is done with a chunk sooner gets one, or three, in advance. A longer chunk must not hold up
another that was sent behind it while a worker idles, and the 0.1 ms that a dispatch takes do not matter beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveSize:
    """The size of automatic chunks, and the smoothed seconds that one object takes in a worker (None: unknown)."""

    size: int = 1
    per_object: float | None = None
    limit: int = LARGEST
    """The most objects, by what the server's time limits have let pass."""

    def after(self, count: int, seconds: float, *, timed_out: bool = False) -> AdaptiveSize:
        """Learn from a chunk of `count` objects that took `seconds` in the worker, and of which the server may have
        ended a statement or a wait for a lock because it took too long."""
        now = seconds / count
        smooth = now if self.per_object is None else SMOOTHING * self.per_object + (1 - SMOOTHING) * now
        wanted = LARGEST if smooth <= 0 else min(LARGEST, max(1, int(TARGET / smooth)))
        limit = max(1, count // 2) if timed_out else min(LARGEST, self.limit + -(-self.limit // RECOVERY))
        return AdaptiveSize(size=min(wanted, limit, 2 * max(self.size, count)), per_object=smooth, limit=limit)

    @property
    def least(self) -> int:
        """The size below which it is not worth while to cut a chunk."""
        return max(1, int(min(self.size, SHORTEST / self.per_object))) if self.per_object else 1


def next_size(wanted: int, *, remaining: int | None, workers: int, room: int, least: int = 1) -> int:
    """Cap a chunk by what is left, so that no worker idles behind one long chunk, and by the room in the window."""
    if remaining is not None:
        wanted = min(wanted, max(least, math.ceil(remaining / (2 * workers))))
    return max(1, min(wanted, room))


def max_lead(capacity: int, *, workers: int) -> int:
    """The most objects that so many workers should be ahead of a stage that can have `capacity` objects in flight."""
    return max(LEAD_FACTOR * capacity, MIN_LEAD_PER_WORKER * workers)


class FlowControl:
    """Keeps the pace of a run."""

    def __init__(self, chunksize: int | Literal["auto"], window: int | None) -> None:
        self._fixed = None if chunksize == "auto" else chunksize
        self._window = window
        self._pace = AdaptiveSize()
        self.depth = 1
        """Chunks that a worker has at a time."""

    @property
    def longest(self) -> int:
        """The most objects that a chunk will have."""
        longest = self._fixed or LARGEST
        return min(longest, self._window or longest)

    def learn(self, count: int, seconds: float, *, timed_out: bool, inline: bool) -> None:
        """Take note of a chunk that has ended; there is no sending in advance to workers that are the caller itself."""
        self.depth = 1 if inline or seconds >= SHORT_CHUNK else 2 if seconds >= SHORTEST_CHUNK else CHUNKS_PER_WORKER
        if self._fixed is None:
            self._pace = self._pace.after(count, seconds, timed_out=timed_out)

    def capacity(self, workers: int, bound: int | None = None) -> int:
        """The most objects that may be in flight now.

        `bound` is what the stage behind has use for. It is not for sizes and windows that somebody has set: they keep
        what piles up within bounds by themselves, and a chunk may be a transaction that is to be as large as that.
        """
        if self._window is not None:
            return self._window
        if self._fixed is not None:
            return CHUNKS_PER_WORKER * workers * self._fixed
        own = CHUNKS_PER_WORKER * workers * self._pace.size
        return own if bound is None else min(own, bound)

    def next_size(self, *, in_flight: int, remaining: int | None, workers: int, bound: int | None = None) -> int:
        """How many objects go into the next chunk; 0 while the window is full."""
        capacity = self.capacity(workers, bound)
        room = capacity - in_flight
        if room < 1:
            return 0
        room = min(room, -(-capacity // workers))
        if self._fixed is not None:
            return min(self._fixed, room)
        wanted = self._pace.size
        if self._window is None and bound is not None:
            # Half of a worker's share, so that there is one to run while the other waits; and all of that or nothing,
            # or every object that leaves would have another one sent after it in a chunk of its own.
            wanted = min(wanted, -(-bound // (2 * workers)))
            if room < wanted:
                return 0
        return next_size(wanted, remaining=remaining, workers=workers, room=room, least=self._pace.least)
