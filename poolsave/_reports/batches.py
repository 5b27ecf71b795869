"""Outcomes of objects that stand side by side in the input, in columns.

Most runs have millions of outcomes that are only a value and a time; a column holds those at little cost. Engines make
batches, and a Report keeps them.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

from ..outcomes import Outcome, Status


class EndTimes:
    """Seconds of objects that ran one after the other, held as the times at which each of them ended.

    A subtraction per object would cost more than a short object itself. It is made when a duration is read.
    """

    __slots__ = ("ends", "started")

    def __init__(self, started: float, ends: array[float]) -> None:
        self.started = started
        self.ends = ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, offset: int) -> float:
        return self.ends[offset] - (self.ends[offset - 1] if offset else self.started)

    def __iter__(self) -> Iterator[float]:
        return map(operator.sub, self.ends, chain((self.started,), self.ends))


NO_STAGES: Mapping[int, int] = {}
"""Of objects that passed all stages of their worker, or none is known for."""


class OutcomeBatch(NamedTuple):
    """`notable` holds, by offset in the batch, each outcome that is more than a value and a time."""

    first: int
    values: Sequence[Any]
    seconds: array[float] | EndTimes
    objects: Sequence[Any]
    worker: int | str | None
    notable: dict[int, Outcome[Any]]
    path: tuple[int, ...] = ()
    """In a pipeline: the position of the value among those that one object became (see `Record.path`)."""
    stage_seconds: Sequence[float] = ()
    """Of a segment with several stages: see `Reply.stage_seconds`."""
    ended_in_stage: Mapping[int, int] = NO_STAGES
    """Of a segment with several stages, by offset in the batch: see `Reply.ended_in_stage`."""
    outcomes_of_object: int = 1
    """With several outcomes for one object, each in a batch of its own: their number in the last one, 0 in others."""

    @property
    def order(self) -> tuple[int, tuple[int, ...]]:
        """Sort key: the order of the input."""
        return self.first, self.path

    def without_objects(self) -> OutcomeBatch:
        """Give a copy without the input objects. Every chunk of a run comes here, so not by `_replace`."""
        return OutcomeBatch(self.first, self.values, self.seconds, (), self.worker, self.notable, self.path)

    def outcomes(self, *, with_items: bool) -> Iterator[Outcome[Any]]:
        """Give every outcome in full, in input order."""
        for offset in range(len(self.values)):
            yield self.notable.get(offset) or self._plain(offset, with_items=with_items)

    def _plain(self, offset: int, *, with_items: bool) -> Outcome[Any]:
        return Outcome(
            index=self.first + offset,
            status=Status.SUCCEEDED,
            value=self.values[offset],
            item=self.objects[offset] if with_items else None,
            seconds=self.seconds[offset],
            worker=self.worker,
        )

    def single(self, offset: int, index: int) -> OutcomeBatch:
        """Give one of the outcomes as a batch of its own, at another index."""
        outcome = self.notable.get(offset)
        return OutcomeBatch(
            index,
            [self.values[offset]],
            array("d", (self.seconds[offset],)),
            [self.objects[offset]],
            self.worker,
            {} if outcome is None else {0: replace(outcome, index=index)},
            self.path,
        )


def unanswered_batch(
    index: int, objects: Sequence[Any], status: Status, error: BaseException | None = None, attempts: int = 0
) -> OutcomeBatch:
    """Give a batch of objects without an answer from a worker."""
    notable: dict[int, Outcome[Any]] = {
        offset: Outcome(index=index + offset, status=status, error=error, item=item, attempts=attempts)
        for offset, item in enumerate(objects)
    }
    return OutcomeBatch(index, [None] * len(objects), array("d", bytes(8 * len(objects))), objects, None, notable)
