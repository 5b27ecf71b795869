"""Ranges of keys that are done, and the gaps between them. Pure: keys are JSON, compared only for equality.

A range holds the keys above `low`, up to and including `high`. So ranges that touch have a key in common, and nothing
has to know how keys are ordered: `sequence` says which range comes first.

    gap 0        range 0        gap 1        range 1     gap 2
    0, 1, ...    (1 << 40) - 1  (1 << 40)    ...         (2 << 40), ...      sequences

A chunk gets the number of the gap that it is in, and the number of objects that were handed out in the gap before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .keys import joined_digest

FIRST = ""
"""In place of a key: before the first one; in place of a gap's `high`: up to the end of the input."""
GAP_BITS = 40
"""A gap has room for so many objects, as a power of two. 2 ** 23 gaps fit into a BigIntegerField."""


class Range(NamedTuple):
    """Objects that have ended."""

    sequence: int
    low: str
    high: str
    done: int = 0
    failed: int = 0
    skipped: int = 0
    digest: int | None = None

    @property
    def objects(self) -> int:
        """How many objects it had."""
        return self.done + self.failed + self.skipped

    def comes_before(self, following: Range) -> bool:
        """Whether the other one follows at once, in the same gap."""
        return self.high == following.low and self.sequence + self.objects == following.sequence

    def joined(self, following: Range) -> Range:
        """Give both as one."""
        digest = None
        if self.digest is not None and following.digest is not None:
            digest = joined_digest(self.digest, following.digest, following.objects)
        return Range(
            self.sequence,
            self.low,
            following.high,
            self.done + following.done,
            self.failed + following.failed,
            self.skipped + following.skipped,
            digest,
        )


class Gap(NamedTuple):
    """Keys above `low`, up to and including `high`, that have not ended."""

    number: int
    low: str
    high: str

    @property
    def sequence(self) -> int:
        """The sequence of its first object."""
        return self.number << GAP_BITS


def merged(ranges: Iterable[Range]) -> Iterator[Range]:
    """Join ranges that touch. They come, and leave, in the order of their sequences."""
    last: Range | None = None
    for following in ranges:
        if last is None:
            last = following
        elif last.high == following.low:
            last = last.joined(following)
        else:
            yield last
            last = following
    if last is not None:
        yield last


def renumbered(ranges: Iterable[Range]) -> list[Range]:
    """Give merged ranges the sequences that leave room for the gaps before each of them."""
    return [each._replace(sequence=(number << GAP_BITS) - 1) for number, each in enumerate(ranges, 1)]


def gaps_between(ranges: Iterable[Range], high: str) -> Iterator[Gap]:
    """Give what is left up to `high`, between ranges that are renumbered."""
    low, number = FIRST, 0
    for each in ranges:
        if each.low != low:
            yield Gap(number, low, each.low)
        low, number = each.high, number + 1
    if high == FIRST or low != high:
        yield Gap(number, low, high)
