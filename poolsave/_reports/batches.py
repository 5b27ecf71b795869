"""Outcomes of objects that stand side by side in the input, in columns: most runs have millions that say nothing."""

from __future__ import annotations

import operator
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

from ..outcomes import Outcome, Status


class EndTimes:
    """Seconds that objects took one after the other, as the times at which each of them ended: a subtraction for each
    would cost more than a brisk object itself, and is made when somebody asks."""

    __slots__ = ("began", "ends")

    def __init__(self, began: float, ends: array[float]) -> None:
        self.began = began
        self.ends = ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, place: int) -> float:
        return self.ends[place] - (self.ends[place - 1] if place else self.began)

    def __iter__(self) -> Iterator[float]:
        return map(operator.sub, self.ends, chain((self.began,), self.ends))


class OutcomeBatch(NamedTuple):
    """`notable` holds, by place in the batch, every outcome that is more than a value and a time."""

    first: int
    values: Sequence[Any]
    seconds: array[float] | EndTimes
    objects: Sequence[Any]
    worker: int | str | None
    notable: dict[int, Outcome[Any]]
    path: tuple[int, ...] = ()
    """In a pipeline: the place of what is here among the several values that one object became."""

    @property
    def order(self) -> tuple[int, tuple[int, ...]]:
        """By this, batches stand in the order of the input."""
        return self.first, self.path

    def without_objects(self) -> OutcomeBatch:
        """The same without what was fed in. Not by `_replace`, since this is done for every chunk of a run."""
        return OutcomeBatch(self.first, self.values, self.seconds, (), self.worker, self.notable, self.path)

    def outcomes(self, *, with_items: bool) -> Iterator[Outcome[Any]]:
        """Write out every outcome, in input order."""
        for place in range(len(self.values)):
            yield self.notable.get(place) or self._plain(place, with_items=with_items)

    def _plain(self, place: int, *, with_items: bool) -> Outcome[Any]:
        return Outcome(
            index=self.first + place,
            status=Status.SUCCEEDED,
            value=self.values[place],
            item=self.objects[place] if with_items else None,
            seconds=self.seconds[place],
            worker=self.worker,
        )

    def single(self, place: int, index: int) -> OutcomeBatch:
        """One of the outcomes as a batch of its own, at another index."""
        outcome = self.notable.get(place)
        return OutcomeBatch(
            index,
            [self.values[place]],
            array("d", (self.seconds[place],)),
            [self.objects[place]],
            self.worker,
            {} if outcome is None else {0: replace(outcome, index=index)},
            self.path,
        )


def unanswered_batch(
    index: int, objects: Sequence[Any], status: Status, error: BaseException | None = None, attempts: int = 0
) -> OutcomeBatch:
    """A batch of objects that no worker has answered for."""
    notable: dict[int, Outcome[Any]] = {
        place: Outcome(index=index + place, status=status, error=error, item=item, attempts=attempts)
        for place, item in enumerate(objects)
    }
    return OutcomeBatch(index, [None] * len(objects), array("d", bytes(8 * len(objects))), objects, None, notable)
