"""What an answer, or the death of a worker, means for the objects of its chunk. Pure: events in, batches out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ._batches import Batch, without_run
from ._replies import Reply, Trouble
from ._transactions import COMMITTED, COMMITTING, RUNNING
from .errors import ValueLost, WorkerDied
from .executors import Died
from .outcomes import Outcome, Status

__all__ = ["Chunk", "answered", "around", "verdicts"]


@dataclass(slots=True)
class Chunk:
    """Objects that stand side by side in the input, on their way; the first `answered` have ended."""

    index: int
    objects: Sequence[Any]
    answered: int = 0
    seconds: float = 0.0

    def rest(self) -> Sequence[Any]:
        """The objects that have not ended."""
        return self.objects[self.answered :]


def verdicts(chunk: Chunk, event: Died, *, own_transactions: bool) -> Iterator[Batch]:
    """Say what its worker's death means for each object that was begun, going by the marks that the worker left."""
    for offset in range(chunk.answered, len(chunk.objects)):
        if event.marks[offset] == 0:
            return
        item = chunk.objects[offset]
        index = chunk.index + offset
        error: BaseException = WorkerDied(event.error.exitcode, event.error.signal, item, event.error.details)
        status = _verdict(event.marks[offset], own_transactions=own_transactions)
        if status is Status.SUCCEEDED:
            error = _value_lost(index, error)
        yield without_run(index, [item], status, error, attempts=1)


def _verdict(mark: int, *, own_transactions: bool) -> Status:
    if mark == COMMITTED:
        return Status.SUCCEEDED
    if mark == RUNNING and own_transactions:
        return Status.FAILED
    assert mark in (RUNNING, COMMITTING)
    return Status.LOST


def _value_lost(index: int, cause: BaseException) -> ValueLost:
    error = ValueLost(index)
    error.__cause__ = cause
    return error


def around(chunk: Chunk, errors: dict[int, BaseException]) -> list[Chunk]:
    """The parts of a chunk between the objects that cannot be sent, the last one first."""
    parts = []
    begin = 0
    for offset in (*sorted(errors), len(chunk.objects)):
        if begin < offset:
            parts.append(Chunk(chunk.index + begin, chunk.objects[begin:offset]))
        begin = offset + 1
    return parts[::-1]


def answered(chunk: Chunk, reply: Reply) -> Batch:
    """What a worker answered for objects of a chunk, as the caller will know it."""
    begin = reply.offset
    index = chunk.index + begin
    objects = chunk.objects[begin : begin + len(reply.values)]
    notable = {
        place: _outcome(index + place, objects[place], trouble, reply, place)
        for place, trouble in reply.troubles.items()
    }
    return Batch(index, reply.values, reply.seconds, objects, reply.worker, notable)


def _outcome(index: int, item: Any, trouble: Trouble, reply: Reply, place: int) -> Outcome[Any]:
    error = trouble.error if isinstance(trouble.error, BaseException) else None
    if error is not None and trouble.unreadable:
        error = _value_lost(index, error)
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
