"""Primary keys drawn from the tables' own sequences before the rows are sent."""

from __future__ import annotations

from collections import deque

from .channel import Channel

FIRST_BLOCK = 50
"""Keys that are drawn first. Each further block is twice as large, up to `LARGEST_BLOCK`."""
LARGEST_BLOCK = 500
"""Keys in a block; about a fiftieth of a round trip each. What a worker has left at its end are gaps."""
DRAW = "SELECT {}, nextval(%s::regclass) FROM generate_series(1, %s)"


class KeyBlocks:
    """Blocks of keys of one connection. They outlive transactions: a sequence is never rolled back."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._blocks: dict[str, deque[int]] = {}
        self._sizes: dict[str, int] = {}

    def next_key(self, sequence: str) -> int:
        """Give the next key; a query draws a block if there is none left."""
        block = self._blocks.get(sequence)
        if not block:
            self._refill(sequence)
            block = self._blocks[sequence]
        return block.popleft()

    def forget(self) -> None:
        """Drop all keys: the sequences may have been set back."""
        self._blocks.clear()

    def _refill(self, sequence: str) -> None:
        self._blocks.setdefault(sequence, deque())
        # With it those that are nearly empty, in the same round trip.
        sizes = {name: self._size(name) for name, block in self._blocks.items() if name == sequence or _is_low(block)}
        query = " UNION ALL ".join(map(DRAW.format, range(len(sizes))))
        names = [*sizes]
        for index, key in self._channel.send(query, [value for pair in sizes.items() for value in pair]):
            self._blocks[names[index]].append(key)

    def _size(self, sequence: str) -> int:
        size = self._sizes.get(sequence, FIRST_BLOCK)
        self._sizes[sequence] = min(2 * size, LARGEST_BLOCK)
        return size


def _is_low(block: deque[int]) -> bool:
    return len(block) < FIRST_BLOCK
