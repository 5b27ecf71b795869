"""What an answer, or the death of a worker, means for the objects of its chunk. Pure: events in, batches out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from .._db.transactions import COMMITTED, PENDING, RUNNING
from .._reports.batches import OutcomeBatch, unanswered_batch
from .._worker.replies import ObjectDetail, Reply
from ..errors import TimedOut, ValueLost, WorkerDied
from ..executors import Died
from ..outcomes import Outcome, Status

NEW = 0
SHARE_FROM = 50
"""Objects that must have ended before `max_failures` counts as a share."""
MAX_CRASHES_BEFORE_START = 3
"""Workers that may die of a chunk, with none of its objects begun, until it is given up."""


@dataclass(slots=True)
class Chunk:
    """Objects that stand side by side in the input, on their way; the first `answered` have ended."""

    index: int
    objects: Sequence[Any]
    answered: int = 0
    strikes: int = 0
    seconds: float = 0.0
    timed_out: bool = False

    def rest(self) -> Sequence[Any]:
        """The objects that have not ended."""
        return self.objects[self.answered :]


Settle: TypeAlias = Callable[[int], Status]
"""Asks the database what became of a transaction, by what its worker noted of it."""


def outcomes_after_crash(
    chunk: Chunk, event: Died, *, own_transactions: bool, timeout: float | None, settle: Settle
) -> tuple[list[OutcomeBatch], list[Chunk]]:
    """Say what its worker's death means for each object of a chunk, going by the marks that the worker left.

    Gives what is known, and what is known to have left nothing behind and can be run by another worker. The object
    that was running is never among the latter.
    """
    known: list[OutcomeBatch] = []
    again: list[int] = []
    for offset in range(chunk.answered, len(chunk.objects)):
        index, item, mark = chunk.index + offset, chunk.objects[offset], event.marks[offset]
        if mark in (NEW, PENDING):
            again.append(offset)
            continue
        status = _status_of_mark(mark, own_transactions=own_transactions)
        if status is Status.LOST and event.note:
            status = settle(event.note)
        error = crash_error(event, item, timeout)
        if status is Status.SUCCEEDED:
            error = value_lost_error(index, error)
            error.add_note("poolsave: its on_commit callbacks may not have run")
        known.append(unanswered_batch(index, [item], status, error, attempts=1))
    parts = subchunks(chunk, again)
    return (known, parts) if known else retry_or_give_up(chunk, parts, event)


def subchunks(chunk: Chunk, offsets: Sequence[int]) -> list[Chunk]:
    """The parts of a chunk at these offsets: those that stand side by side stay together."""
    spans: list[tuple[int, int]] = []
    for offset in offsets:
        begin = spans.pop()[0] if spans and spans[-1][1] == offset else offset
        spans.append((begin, offset + 1))
    return [Chunk(chunk.index + begin, chunk.objects[begin:end]) for begin, end in spans]


def retry_or_give_up(chunk: Chunk, again: list[Chunk], event: Died) -> tuple[list[OutcomeBatch], list[Chunk]]:
    """A chunk that lets worker after worker die before any object has begun is given up."""
    for one in again:
        one.strikes = chunk.strikes + 1
    if chunk.strikes + 1 < MAX_CRASHES_BEFORE_START:
        return [], again
    return [unanswered_batch(one.index, one.objects, Status.FAILED, event.error, attempts=1) for one in again], []


def _status_of_mark(mark: int, *, own_transactions: bool) -> Status:
    if mark == COMMITTED:
        return Status.SUCCEEDED
    if mark == RUNNING and own_transactions:
        return Status.FAILED
    return Status.LOST


def crash_error(event: Died, item: Any, timeout: float | None) -> BaseException:
    died = WorkerDied(event.error.exitcode, event.error.signal, item, event.error.details)
    if not event.overdue or timeout is None:
        return died
    error = TimedOut(timeout, item)
    error.__cause__ = died
    return error


def value_lost_error(index: int, cause: BaseException) -> ValueLost:
    error = ValueLost(index)
    error.__cause__ = cause
    return error


def split_around(chunk: Chunk, errors: dict[int, BaseException]) -> list[Chunk]:
    """The parts of a chunk between the objects that cannot be sent, the last one first."""
    parts = []
    begin = 0
    for offset in (*sorted(errors), len(chunk.objects)):
        if begin < offset:
            parts.append(Chunk(chunk.index + begin, chunk.objects[begin:offset]))
        begin = offset + 1
    return parts[::-1]


def batch_from_reply(chunk: Chunk, reply: Reply, settle: Settle) -> OutcomeBatch:
    """What a worker answered for objects of a chunk, as the caller will know it."""
    begin = reply.offset
    index = chunk.index + begin
    count = len(reply.values)
    objects = chunk.objects if count == len(chunk.objects) else chunk.objects[begin : begin + count]
    notable = {
        place: _outcome(index + place, objects[place], _settled(trouble, settle), reply, place)
        for place, trouble in reply.troubles.items()
    }
    return OutcomeBatch(index, reply.values, reply.seconds, objects, reply.worker, notable)


def _settled(trouble: ObjectDetail, settle: Settle) -> ObjectDetail:
    if trouble.status is not Status.LOST or not trouble.note:
        return trouble
    return trouble._replace(status=settle(trouble.note))


def _outcome(index: int, item: Any, trouble: ObjectDetail, reply: Reply, place: int) -> Outcome[Any]:
    error = trouble.error if isinstance(trouble.error, BaseException) else None
    if error is not None and trouble.unreadable:
        error = value_lost_error(index, error)
    return Outcome(
        index=index,
        status=trouble.status,
        value=reply.values[place],
        error=error,
        traceback=trouble.traceback,
        item=item,
        attempts=trouble.attempts,
        seconds=reply.seconds[place],
        worker=reply.worker,
    )


def max_failures_reached(limit: float | None, failed: int, ended: int) -> bool:
    """Whether more objects have failed than `max_failures` allows."""
    if limit is None or not failed:
        return False
    if isinstance(limit, int):
        return failed >= limit
    return ended >= SHARE_FROM and failed >= limit * ended
