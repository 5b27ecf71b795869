"""Where the objects of a session lie: by their index, the key before each, and its sequence in the ledger."""

from __future__ import annotations

from bisect import bisect_right

from .sources import Place

MIN_PLACES = 100
"""Chunks whose places may be known, before those that have ended are forgotten."""


class Places:
    """Where each index lies, of the objects that have not ended."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._places: list[Place] = []
        self._limit = MIN_PLACES

    def add(self, index: int, place: Place) -> None:
        """Note the place of a chunk, which begins behind all others."""
        self._begins.append(index)
        self._places.append(place)

    @property
    def are_many(self) -> bool:
        """Whether it is time to forget some."""
        return len(self._begins) >= self._limit

    def forget_before(self, index: int) -> None:
        """Forget the places of chunks that end before an index."""
        ended = bisect_right(self._begins, index) - 1
        del self._begins[:ended], self._places[:ended]
        self._limit = max(MIN_PLACES, 2 * len(self._begins))

    def at(self, index: int) -> tuple[Place, int]:
        """Give the place of the chunk that an object was first handed out in, and its offset there."""
        found = bisect_right(self._begins, index) - 1
        return self._places[found], index - self._begins[found]

    def part(self, index: int, count: int) -> Place:
        """Give the place of some objects of a chunk, from that of this index on."""
        place, first = self.at(index)
        end = first + count
        return Place(
            place.keys[first - 1] if first else place.low,
            place.sequence + first,
            place.keys[first:end],
            None if place.failures is None else place.failures[first:end],
        )
