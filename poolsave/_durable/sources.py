"""What is left of a durable run's input: the objects in the gaps between the ranges that have ended.

A chunk lies in one gap. `place` tells where the chunk lies that was handed out last, and `Places` keeps that of all
chunks in flight.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

from django.db.models import QuerySet

from .._db import inspection
from .._db.inspection import PrimaryKeys, count_or_estimate, reconnecting
from .._engine.sources import IterableSource
from ..errors import InputChanged, InvalidOption
from .keys import decode, digest_of, encode, joined_digest
from .ranges import FIRST, GAP_BITS, Gap, Range, gaps_between
from .session import Bounds

MAX_RANGE = 1000
"""The most rows that a worker fetches with one query and holds at once."""
TICK = 1000
"""Objects that are passed over between two heartbeats of a session that begins."""
MIN_PLACES = 100
"""Chunks whose places may be known, before those that have ended are forgotten."""
NO_MORE: Any = object()


class Place(NamedTuple):
    """Where a chunk lies."""

    low: str
    """The key before its first one."""
    sequence: int
    """Of its first object."""
    keys: Sequence[str]
    failures: Sequence[int] | None = None
    """In a session that tries failures again: their rows."""

    def part(self, first: int, end: int) -> Place:
        """Give the place of some of its objects, by their offsets."""
        return Place(
            self.keys[first - 1] if first else self.low,
            self.sequence + first,
            self.keys[first:end],
            None if self.failures is None else self.failures[first:end],
        )


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
        return place.part(first, first + count)


class DurableSource(Protocol):
    """What the engine asks of a source, besides what it asks of any."""

    place: Place
    tick: Callable[[], None]
    """Called while a long input is passed over."""
    tails: list[Range]
    """Ranges without any object that have come to light, for the ledger."""

    def bounds(self) -> Bounds:
        """Give what there is to do, for a run that begins."""
        ...

    def open(self, ranges: Sequence[Range], bounds: Bounds) -> None:
        """Begin with what is left besides these ranges."""
        ...

    def open_failures(self, failures: Iterator[tuple[int, str]], count: int) -> None:
        """Begin with objects that have failed: their rows, and their keys."""
        ...

    def count_later(self, high: str) -> int | None:
        """Count what lies above the last key; None if nothing can."""
        ...


def _do_nothing() -> None:
    pass


class QuerySetGaps(IterableSource):
    """The primary keys of a queryset in the gaps: walked along the index, page by page."""

    def __init__(self, queryset: QuerySet[Any]) -> None:
        super().__init__(iter(()), instant=True)
        self._ended = False
        self._queryset = queryset
        self.label = queryset.model._meta.label
        self._keys = PrimaryKeys(queryset)
        self._gaps: deque[Gap] = deque()
        self._gap = Gap(0, FIRST, FIRST)
        self._page: list[Any] = []
        self._last: Any = None
        """The last key that was read in the gap."""
        self._all_read = True
        """Whether the page is the last one of the gap."""
        self._low, self._sequence = FIRST, 0
        self._failures: Iterator[tuple[int, str]] | None = None
        self._ids: list[int] = []
        """The rows of the failures in the page."""
        self.place = Place(FIRST, 0, ())
        self.tails: list[Range] = []
        self.tick: Callable[[], None] = _do_nothing

    def bounds(self) -> Bounds:
        high = self._keys.largest()
        if high is None:
            return Bounds(FIRST, 0)
        text = encode(high)
        if decode(text, self._queryset) != high:
            raise InvalidOption("run", high, "a key of this type cannot be stored; map rows with Run(key=...)")
        return Bounds(text, count_or_estimate(self._queryset))

    def open(self, ranges: Sequence[Range], bounds: Bounds) -> None:
        if bounds.high != FIRST:
            self._gaps.extend(gaps_between(ranges, bounds.high))
        ended = sum(each.objects for each in ranges)
        self._total = None if bounds.total is None else max(0, bounds.total - ended)
        self._advance()

    def open_failures(self, failures: Iterator[tuple[int, str]], count: int) -> None:
        self._failures, self._total = failures, count
        self._advance()

    def remaining(self) -> int | None:
        if self._failures is not None:
            return max(0, (self._total or 0) - self._handed_out)
        return len(self._page) if self._all_read and not self._gaps else None

    def gather(self, size: int, *, idle: bool) -> Sequence[Any] | None:
        size = min(size, MAX_RANGE)
        chunk, self._page = self._page[:size], self._page[size:]
        if not chunk:
            return None
        keys = [*map(encode, chunk)]
        failures, self._ids = (None, []) if self._failures is None else (self._ids[:size], self._ids[size:])
        self.place = Place(self._low, self._sequence, keys, failures)
        self._low, self._sequence = keys[-1], self._sequence + len(keys)
        self._handed_out += len(chunk)
        if not self._page:
            self._go_on()
        return chunk

    def _go_on(self) -> None:
        self.pulling = True
        try:
            self._advance()
        except BaseException as error:  # raised in the caller when all objects that were sent have ended
            self.error, self._ended = error, True
        finally:
            self.pulling = False

    def _advance(self) -> None:
        if self._failures is not None:
            waiting = [*islice(self._failures, inspection.PAGE_SIZE)]
            self._ids = [failure for failure, _ in waiting]
            self._page = [decode(key, self._queryset) for _, key in waiting]
            self._ended = not waiting
            return
        while not self._page:
            if not self._all_read:
                self._read()
            elif not self._next_gap():
                self._ended = True
                return

    def _next_gap(self) -> bool:
        if self._low != self._gap.high:  # no row is left up to its end
            self.tails.append(Range(self._sequence, self._low, self._gap.high))
        self._gap = Gap(0, FIRST, FIRST)
        self._low, self._last, self._all_read = FIRST, None, True
        if not self._gaps:
            return False
        self._gap = self._gaps.popleft()
        self._low, self._sequence, self._all_read = self._gap.low, self._gap.sequence, False
        self._last = None if self._low == FIRST else decode(self._low, self._queryset)
        return True

    def _read(self) -> None:
        upto = decode(self._gap.high, self._queryset)
        self._page, self._all_read = reconnecting(
            self._keys.alias, lambda: self._keys.page(above=self._last, upto=upto)
        )
        self._last = self._page[-1] if self._page else None

    def count_later(self, high: str) -> int | None:
        rows = self._queryset.order_by()
        if high != FIRST:
            rows = rows.filter(pk__gt=decode(high, self._queryset))
        return reconnecting(rows.db, lambda: rows.values("pk").distinct().count())

    def give_up(self) -> list[Any]:
        self._ended, self._gaps, self._page = True, deque(), []
        return []  # keys that were not handed out are left for the next session


class KeyedInput(IterableSource):
    """Any iterable, by a key of each object: it is read from its start, and what has ended is passed over."""

    def __init__(self, name: str, objects: Iterable[Any], key: Callable[[Any], str | int]) -> None:
        self._name = name
        self._objects = objects
        self._key = key
        self._ranges: deque[Range] = deque()
        self._failures: dict[str, int] | None = None
        super().__init__(self._left(), instant=isinstance(objects, list | tuple | range))
        self._ended = False
        self._total = _length(objects)
        self.place = Place(FIRST, 0, ())
        self.tails: list[Range] = []
        self.tick: Callable[[], None] = _do_nothing

    def bounds(self) -> Bounds:
        return Bounds(FIRST, self._total)

    def open(self, ranges: Sequence[Range], bounds: Bounds) -> None:
        self._ranges = deque(ranges)
        if self._total is not None:
            self._total = max(0, self._total - sum(each.objects for each in ranges))

    def open_failures(self, failures: Iterator[tuple[int, str]], count: int) -> None:
        self._failures, self._total = {key: failure for failure, key in failures}, None

    def count_later(self, high: str) -> int | None:
        return None

    def _left(self) -> Iterator[tuple[Any, str, str, int]]:
        if self._failures is not None:
            yield from self._failed(self._failures)
            return
        objects = iter(self._objects)
        low, number, index = FIRST, 0, 0
        while True:
            while self._ranges and self._ranges[0].low == low:
                low = self._pass_over(objects, self._ranges.popleft())
                number, index = number + 1, 0
            item = next(objects, NO_MORE)
            if item is NO_MORE:
                break
            key = self._key_of(item)
            yield item, key, low, (number << GAP_BITS) + index
            low, index = key, index + 1
        if self._ranges:
            raise InputChanged(self._name, f"behind the key {low}", f"the key {self._ranges[0].low}", "the end")

    def _failed(self, failures: dict[str, int]) -> Iterator[tuple[Any, str, str, int]]:
        low, index = FIRST, 0
        for item in self._objects:
            key = self._key_of(item)
            if key in failures:
                yield item, key, low, index
                low, index = key, index + 1

    def _pass_over(self, objects: Iterator[Any], ended: Range) -> str:
        """Read what has ended, and compare its number, its last key and its digest."""
        count, digest, last = 0, digest_of(()), None
        while keys := [self._key_of(item) for item in islice(objects, min(TICK, ended.objects - count))]:
            digest = joined_digest(digest, digest_of(keys), len(keys))
            count, last = count + len(keys), keys[-1]
            self.tick()
        where = f"behind the key {ended.low or 'at the start'}, up to {ended.high}"
        if count != ended.objects or last != ended.high:
            seen = "nothing" if last is None else f"{count} objects up to {last}"
            raise InputChanged(self._name, where, f"{ended.objects} objects up to {ended.high}", seen)
        if ended.digest is not None and digest != ended.digest:
            raise InputChanged(self._name, where, "other keys", f"{count} objects up to {last}")
        return ended.high

    def _key_of(self, item: Any) -> str:
        key = self._key(item)
        if type(key) not in (int, str):
            raise InvalidOption("key", key, "let Run(key=...) give a text or a whole number")
        return encode(key)

    def gather(self, size: int, *, idle: bool) -> Sequence[Any] | None:
        chunk = super().gather(size, idle=idle)
        if not chunk:
            return None
        # Only what lies in one gap goes out together, since a chunk has one place. The rest goes back.
        first = chunk[0][3]
        together = next((at for at, each in enumerate(chunk) if each[3] != first + at), len(chunk))
        if together < len(chunk):
            self._gathered = [*chunk[together:], *self._gathered]
            self._handed_out -= len(chunk) - together
        keys = [key for _, key, _, _ in chunk[:together]]
        failures = None if self._failures is None else [self._failures[key] for key in keys]
        self.place = Place(chunk[0][2], first, keys, failures)
        return [item for item, _, _, _ in chunk[:together]]

    def _object_of(self, pulled: Any) -> Any:
        return pulled[0]

    def give_up(self) -> list[Any]:
        return [item for item, _, _, _ in super().give_up()]


def _length(objects: Iterable[Any]) -> int | None:
    try:
        return len(objects)  # type: ignore[arg-type]
    except TypeError:
        return None
