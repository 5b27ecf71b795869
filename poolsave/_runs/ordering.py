"""Outcomes in input order. A `Run` has one Reorderer, and tells its engine how many outcomes wait there."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

from .._reports.batches import OutcomeBatch


class Reorderer:
    """Holds batches back until everything before them has left.

    An object has one outcome, unless a stage with `expand` has made several values of it. Then each outcome comes in a
    batch of its own.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, list[OutcomeBatch]] = {}
        self._expected: dict[int, int] = {}
        """How many batches there are for an object, by its index, once that is known."""
        self.undelivered = 0
        """How many outcomes wait."""

    def in_input_order(self, batches: Iterator[OutcomeBatch]) -> Iterator[OutcomeBatch]:
        """Give the batches in the order of the input, and the outcomes of one object in the order of its values."""
        next_index = 0
        for batch in batches:
            self._hold(batch)
            while next_index in self._waiting and len(self._waiting[next_index]) == self._expected.get(next_index):
                del self._expected[next_index]
                group = sorted(self._waiting.pop(next_index), key=attrgetter("path"))
                next_index += len(group[0].values)
                self.undelivered -= sum(len(ready.values) for ready in group)
                yield from group

    def _hold(self, batch: OutcomeBatch) -> None:
        self._waiting.setdefault(batch.first, []).append(batch)
        self.undelivered += len(batch.values)
        if batch.outcomes_of_object:
            self._expected[batch.first] = batch.outcomes_of_object
