"""Chunks: what is in flight, the size of the next one, and how many a worker is sent in advance.

Pure: numbers in and out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

TARGET = 0.075
"""Seconds of work that an automatic chunk aims at: long compared to a dispatch (about 0.1 ms), short enough for a
progress bar and Ctrl-C."""
BATCHED_TARGET = 0.3
"""The same with `batch_writes`. What is sent at the end of a chunk takes nearly as long for few rows as for many."""
LONGEST_WITH_COMMIT = 0.6
"""Seconds that a chunk may take with the COMMIT of all its objects, or twice the target if that is more. A slow COMMIT
is no reason for small chunks, but it may be slow since it checks each object."""
SHORTEST = 0.002
"""Seconds of work. The last chunks are not made shorter, nor shorter than the executor's latency: sending more of them
costs as much as idling so long."""
SMOOTHING = 0.8
"""Weight of what is known of earlier chunks, for each further one."""
LARGEST = 20_000
"""Upper bound on the objects of an automatic chunk. It bounds the memory when functions take no time."""
BATCHED_LARGEST, BATCHED_ROWS = 500, 1600
"""The same with `batch_writes`, and the rows of so many objects. More rows would not all wait for the end of the chunk,
see `MAX_ROWS` in `buffer.py`. Only if they do can objects of which a row is there already run again by themselves."""
GROWTH = 4
"""Factor by which an automatic chunk is larger than the one before, at most: its objects may take longer."""
RECOVERY = 8
"""After a time-out of the server, each chunk that passes raises the limit by this fraction (an eighth)."""
CHUNKS_PER_WORKER = 4
"""Upper bound on the chunks in flight per worker, if no window is set."""
LEAD_FACTOR = 2
"""How many objects a stage may have in flight or waiting for the next stage, as a multiple of the next capacity."""
MIN_LEAD_PER_WORKER = 4
"""Lower bound on that lead, in objects per worker."""
SHORT_CHUNK, SHORTEST_CHUNK = 0.02, 0.001
"""Seconds. Prefetch one chunk if chunks take < 20 ms, three if < 1 ms. Longer chunks are not prefetched: one would wait
behind a busy worker while another idles, and the 0.1 ms of a dispatch do not matter."""
MOST_CHUNKS_PER_WORKER = 16
"""Upper bound on the chunks that a worker has where the executor measures its latency. So many are sent as take as long
as the latency, but not if that is more than `SHORT_CHUNK`: what such a worker has is lost with it."""


@dataclass(slots=True)
class Chunk:
    """Consecutive objects of the input, in flight. The first `answered` of them have ended."""

    index: int
    objects: Sequence[Any]
    answered: int = 0
    crashes: int = 0
    seconds: float = 0.0
    committing: float = 0.0
    """Seconds of these in the one COMMIT of all objects."""
    rows: int = 0
    """How many waited for its end, with `batch_writes`."""
    timed_out: bool = False

    def rest(self) -> Sequence[Any]:
        """Give the objects that have not ended."""
        return self.objects[self.answered :]

    def parts(self, offsets: Sequence[int], *, alone: int | None = None) -> list[Chunk]:
        """Give chunks of the objects at these offsets. Neighbours stay together, except for the one at `alone`."""
        spans: list[list[int]] = []
        for offset in offsets:
            if spans and spans[-1][1] == offset and alone not in (offset, offset - 1):
                spans[-1][1] = offset + 1
            else:
                spans.append([offset, offset + 1])
        return [Chunk(self.index + begin, self.objects[begin:end]) for begin, end in spans]


class AdaptiveSize(NamedTuple):
    """The size of automatic chunks, and what it is computed from."""

    size: int = 1
    objects: float = 0.0
    """Of earlier chunks, each of which counts less with every further one."""
    seconds: float = 0.0
    """That these took in workers. A chunk of many says more than the first one, which has one object."""
    limit: int = LARGEST
    """Upper bound on the objects of a chunk that the server's time limits seem to allow."""
    target: float = TARGET
    """Seconds of work that a chunk aims at."""
    shortest: float = SHORTEST
    """Seconds of work below which the last chunks are not made shorter."""

    def after(
        self, count: int, seconds: float, *, timed_out: bool = False, latency: float = 0.0, largest: int = LARGEST
    ) -> AdaptiveSize:
        """Learn from a chunk of `count` objects that took `seconds` in the worker.

        `timed_out`: the server ended a statement or a wait for a lock in it, because that took too long. `latency`: of
        the executor, if it measures it. `largest`: upper bound on the size whatever the time."""
        objects, seconds = SMOOTHING * self.objects + count, SMOOTHING * self.seconds + seconds
        wanted = LARGEST if seconds <= 0 else max(1, round(self.target * objects / seconds))
        limit = max(1, count // 2) if timed_out else min(LARGEST, self.limit + -(-self.limit // RECOVERY))
        size = min(wanted, limit, largest, GROWTH * max(self.size, count))
        # Not by `replace`, since every chunk comes here.
        return AdaptiveSize(size, objects, seconds, limit, self.target, max(SHORTEST, latency))

    @property
    def min_size(self) -> int:
        """The size below which the last chunks are not made smaller."""
        return max(1, min(self.size, round(self.shortest * self.objects / self.seconds))) if self.seconds else 1


def next_size(wanted: int, *, remaining: int | None, workers: int, room: int, min_size: int = 1) -> int:
    """Cap a chunk by the remaining objects, so that no worker idles beside one long chunk, and by the free window."""
    if remaining is not None and workers > 1:
        wanted = min(wanted, max(min_size, math.ceil(remaining / (2 * workers))))
    return max(1, min(wanted, room))


def max_lead(capacity: int, *, workers: int) -> int:
    """Upper bound on the lead of so many workers over a stage that can have `capacity` objects in flight."""
    return max(LEAD_FACTOR * capacity, MIN_LEAD_PER_WORKER * workers)


def _prefetch(seconds: float, latency: float) -> int:
    """How many chunks a worker is sent before it has ended the first, if one takes so many seconds."""
    if latency:
        work = min(latency, SHORT_CHUNK)
        return MOST_CHUNKS_PER_WORKER if work >= MOST_CHUNKS_PER_WORKER * seconds else max(1, int(work / seconds))
    return 1 if seconds >= SHORT_CHUNK else 2 if seconds >= SHORTEST_CHUNK else CHUNKS_PER_WORKER


class FlowControl:
    """Decides how much of a run is in flight, and learns from the chunks that have ended."""

    def __init__(
        self, chunksize: int | Literal["auto"], window: int | None, *, target: float = TARGET, largest: int = LARGEST
    ) -> None:
        """`target`: seconds of work that an automatic chunk aims at. It never has more than `largest` objects."""
        self._fixed = None if chunksize == "auto" else chunksize
        self._window = window
        self._largest = self._fitting = largest
        self._adaptive = AdaptiveSize(target=target)
        self.prefetch = 1
        """Chunks that a worker is sent before it has ended the first of them."""
        self._seconds: float | None = None
        """Smoothed seconds of a chunk."""

    @property
    def shortest(self) -> int:
        """Lower bound on the size of a chunk, but for the last one."""
        return 1 if self._fixed is None else self.longest

    @property
    def longest(self) -> int:
        """Upper bound on the size of a chunk."""
        longest = self._fixed or self._largest
        return min(longest, self._window or longest)

    def learn(  # noqa: PLR0913  all that is known of a chunk
        self,
        count: int,
        seconds: float,
        *,
        timed_out: bool,
        inline: bool,
        latency: float = 0.0,
        committing: float = 0.0,
        rows: int = 0,
    ) -> None:
        """Learn from a chunk that has ended. Inline workers get no chunk in advance.

        `committing`: how many of its seconds were one COMMIT, however many objects there are. `latency`: seconds that a
        worker idles between two chunks that are sent one by one, if the executor measures it. `rows`: how many have
        waited for its end.
        """
        before = seconds if self._seconds is None else self._seconds
        self._seconds = SMOOTHING * before + (1 - SMOOTHING) * seconds
        self.prefetch = 1 if inline else _prefetch(max(seconds, self._seconds) if latency else seconds, latency)
        if self._fixed is None:
            target = self._adaptive.target
            working = max(seconds - committing, seconds * target / max(LONGEST_WITH_COMMIT, 2 * target))
            if rows:
                self._fitting = max(1, min(self._largest, BATCHED_ROWS * count // rows))
            self._adaptive = self._adaptive.after(
                count, working, timed_out=timed_out, latency=latency, largest=self._fitting
            )

    def capacity(self, workers: int, max_lead: int | None = None) -> int:
        """Upper bound on the objects in flight now.

        `max_lead` is what the next stage can use. It does not apply to a size or window that the user has set. These
        limit the lead by themselves, and a chunk may be a transaction that is meant to be that large.
        """
        if self._window is not None:
            return self._window
        chunks = max(CHUNKS_PER_WORKER, self.prefetch) * workers
        if self._fixed is not None:
            return chunks * self._fixed
        own = chunks * self._adaptive.size
        return own if max_lead is None else min(own, max_lead)

    def next_size(self, *, in_flight: int, remaining: int | None, workers: int, max_lead: int | None = None) -> int:
        """The number of objects for the next chunk; 0 while the window is full."""
        capacity = self.capacity(workers, max_lead)
        room = capacity - in_flight
        if room < 1:
            return 0
        room = min(room, -(-capacity // workers))
        if self._fixed is not None:
            return min(self._fixed, room)
        wanted = self._adaptive.size
        if self._window is None and max_lead is not None:
            # Half of a worker's share: one chunk runs while the other waits. And the whole chunk or nothing: otherwise
            # each object that leaves would be followed by a chunk of one object.
            wanted = min(wanted, -(-max_lead // (2 * workers)))
            if room < wanted:
                return 0
        return next_size(wanted, remaining=remaining, workers=workers, room=room, min_size=self._adaptive.min_size)
