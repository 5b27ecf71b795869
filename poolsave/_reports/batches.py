"""Outcomes of objects that stand side by side in the input, in columns.

Most runs have millions of outcomes that are only a value and a time; a column holds those at little cost. Engines make
batches, and a Report keeps them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

from .._worker.replies import NO_STAGES, EndTimes, ObjectDetail, Reply
from ..errors import ValueLost
from ..outcomes import DROP, Outcome, Status

Settle: TypeAlias = Callable[[int], Status]
"""Asks the database what became of a transaction, by the number that its worker noted."""


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


def batch_from_reply(reply: Reply, first: int, objects: Sequence[Any], settle: Settle) -> OutcomeBatch:
    """Turn a reply into outcomes. `first` is the index of the first object of its chunk, `objects` are all of them."""
    index, count = first + reply.offset, len(reply.values)
    if count < len(objects):
        objects = objects[reply.offset : reply.offset + count]
    notable = {
        place: _outcome(index + place, objects[place], _settled_detail(detail, settle), reply, place)
        for place, detail in reply.details.items()
    }
    batch = OutcomeBatch(index, reply.values, reply.seconds, objects, reply.worker, notable)
    return _with_stages(batch, reply) if reply.stage_seconds else batch


def _with_stages(batch: OutcomeBatch, reply: Reply) -> OutcomeBatch:
    """Add what the reply says of stages. A success before the last stage ends in the next one, unless it was dropped:
    its worker did not know the success, so the next stage has not started."""
    ended_in_stage, notable = {**reply.ended_in_stage}, batch.notable
    for place, stage in reply.ended_in_stage.items():
        outcome = notable.get(place)
        if outcome is None or outcome.status is not Status.SUCCEEDED or batch.values[place] is DROP:
            continue
        if stage < len(reply.stage_seconds) - 1:
            ended_in_stage[place] = stage + 1
            lost = value_lost_error(outcome.index, outcome.error)
            notable[place] = replace(outcome, status=Status.FAILED, error=lost)
    return batch._replace(stage_seconds=reply.stage_seconds, ended_in_stage=ended_in_stage)


def _settled_detail(detail: ObjectDetail, settle: Settle) -> ObjectDetail:
    if detail.status is not Status.LOST or not detail.note:
        return detail
    return detail._replace(status=settle(detail.note))


def _outcome(index: int, item: Any, detail: ObjectDetail, reply: Reply, place: int) -> Outcome[Any]:
    error = detail.error if isinstance(detail.error, BaseException) else None
    if error is not None and detail.unreadable:
        error = value_lost_error(index, error)
    return Outcome(
        index=index,
        status=detail.status,
        value=reply.values[place],
        error=error,
        traceback=detail.traceback,
        item=item,
        attempts=detail.attempts,
        seconds=reply.seconds[place],
        worker=reply.worker,
    )


def value_lost_error(index: int, cause: BaseException | None) -> ValueLost:
    error = ValueLost(index)
    error.__cause__ = cause
    return error
