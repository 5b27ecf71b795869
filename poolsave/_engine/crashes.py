"""What a reply, or the death of a worker, means for the objects of its chunk. Pure: events in, batches out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

from .._reports.batches import OutcomeBatch, unanswered_batch
from .._worker.replies import ObjectDetail, Reply
from ..errors import TimedOut, ValueLost, WorkerDied
from ..executors import Died
from ..executors.marks import COMMITTED, COMMITTING, HAD_FAILED, MARKS_PER_STAGE, NEW, PENDING, RUNNING
from ..outcomes import DROP, Outcome, Status

MIN_ENDED_FOR_SHARE = 50
"""Objects that must have ended before a `max_failures` that is a fraction applies."""
MAX_CRASHES_BEFORE_START = 3
"""Workers that may die with a chunk of which no object has started. Then the chunk is given up."""


@dataclass(slots=True)
class Chunk:
    """Consecutive objects of the input, in flight. The first `answered` of them have ended."""

    index: int
    objects: Sequence[Any]
    answered: int = 0
    crashes: int = 0
    seconds: float = 0.0
    timed_out: bool = False

    def rest(self) -> Sequence[Any]:
        """The objects that have not ended."""
        return self.objects[self.answered :]


Settle: TypeAlias = Callable[[int], Status]
"""Asks the database what became of a transaction, by the number that its worker noted."""


class StageMode(NamedTuple):
    """What the marks of a stage depend on. A plain run has one stage."""

    transaction: str | None
    noted: bool
    """Whether its worker notes the ids of its transactions."""


class CrashAnalysis:
    """Decides by its marks what the death of a worker means for the objects of its chunk.

    Only the object that the worker was running is blamed.
    """

    def __init__(
        self, event: Died, stages: Sequence[StageMode], *, timeout: float | None, settle: Settle, exact: bool = True
    ) -> None:
        self._event = event
        self._stages = stages
        self._timeout = timeout
        self._settle = settle
        self._exact = exact
        """Whether the marks are the worker's own. If not, the progress of every object is unknown."""
        marks = [divmod(code, MARKS_PER_STAGE) for code in event.marks]
        self._running_stage = max((stage for stage, mark in marks if mark in (RUNNING, COMMITTING)), default=None)

    def outcomes(self, chunk: Chunk) -> tuple[list[OutcomeBatch], list[Chunk]]:
        """Return the outcomes that are known, and the chunks that another worker can run.

        The chunks hold objects that have left nothing behind. The object that was running is never among them. Neither
        is an object that has left its first stage: its value is gone, and the stage would run twice.
        """
        known: list[OutcomeBatch] = []
        requeued: list[int] = []
        for offset in range(chunk.answered, len(chunk.objects)):
            stage, mark = divmod(self._event.marks[offset], MARKS_PER_STAGE)
            if stage == 0 and self._can_run_again(mark):
                requeued.append(offset)
            else:
                known.append(self._batch_of(chunk.index + offset, chunk.objects[offset], stage, mark))
        parts = subchunks(chunk, requeued)
        return (
            (known, parts)
            if known
            else retry_or_give_up(chunk, parts, self._crash_error(None), at_once=self._event.overdue)
        )

    def _can_run_again(self, mark: int) -> bool:
        return mark in (NEW, PENDING) or (mark == HAD_FAILED and self._stages[0].transaction == "chunk")

    def _batch_of(self, index: int, item: Any, stage: int, mark: int) -> OutcomeBatch:
        status, ended = self._status_and_stage(stage, mark)
        error = self._error(item, stage, mark, status)
        if mark == COMMITTED or status is Status.SUCCEEDED or ended != stage:
            error = value_lost_error(index, error)
        if status is Status.SUCCEEDED:
            error.add_note("poolsave: its on_commit callbacks may not have run")
        batch = unanswered_batch(index, [item], status, error, attempts=1)
        if len(self._stages) == 1 or not self._exact:
            return batch
        return batch._replace(ended_in_stage={0: ended})

    def _status_and_stage(self, stage: int, mark: int) -> tuple[Status, int]:
        """The status of an object, and the stage that it ended in."""
        mode = self._stages[stage]
        status = _status_of_mark(mark, mode.transaction)
        if mark == COMMITTING and mode.noted and self._event.note:
            status = self._settle(self._event.note)
        if status is Status.SUCCEEDED and stage < len(self._stages) - 1:
            return Status.FAILED, stage + 1  # the next stage never starts: its object is gone
        return status, stage

    def _error(self, item: Any, stage: int, mark: int, status: Status) -> BaseException:
        if mark in (RUNNING, COMMITTING):
            return self._crash_error(item)
        died = self._event.error
        error = WorkerDied(died.exitcode, died.signal, None, died.details, afterwards=True)
        if mark == PENDING and (self._running_stage is None or self._running_stage <= stage):
            error.add_note("poolsave: it was rolled back with the transaction that it shared with others of its chunk")
        elif mark != COMMITTED:  # its stage is done with its transaction
            error.add_note(
                f"poolsave: it was known as {status.value} by then, but its own error was lost with the worker"
            )
        return error

    def _crash_error(self, item: Any) -> BaseException:
        cause = self._event.error
        died = WorkerDied(cause.exitcode, cause.signal, item, cause.details)
        if not self._event.overdue or self._timeout is None:
            return died
        error = TimedOut(self._timeout, item)
        error.__cause__ = died
        return error


def _status_of_mark(mark: int, transaction: str | None) -> Status:
    if mark == COMMITTED:
        return Status.SUCCEEDED
    if mark in (PENDING, HAD_FAILED) or (mark == RUNNING and transaction is not None):
        return Status.FAILED
    return Status.LOST


def subchunks(chunk: Chunk, offsets: Sequence[int]) -> list[Chunk]:
    """The parts of a chunk at these offsets. Neighbours stay together."""
    spans: list[tuple[int, int]] = []
    for offset in offsets:
        begin = spans.pop()[0] if spans and spans[-1][1] == offset else offset
        spans.append((begin, offset + 1))
    return [Chunk(chunk.index + begin, chunk.objects[begin:end]) for begin, end in spans]


def retry_or_give_up(
    chunk: Chunk, requeued: list[Chunk], error: BaseException, *, at_once: bool
) -> tuple[list[OutcomeBatch], list[Chunk]]:
    """Run the parts of a chunk again, or fail them if worker after worker dies before an object has started.

    `at_once`: fail them now, since the worker exceeded the time-out, for example because the server does not answer."""
    for part in requeued:
        part.crashes = chunk.crashes + 1
    if chunk.crashes + 1 < MAX_CRASHES_BEFORE_START and not at_once:
        return [], requeued
    return [unanswered_batch(part.index, part.objects, Status.FAILED, error, attempts=1) for part in requeued], []


def value_lost_error(index: int, cause: BaseException | None) -> ValueLost:
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
    """Turn a reply into the outcomes of the objects of its chunk."""
    begin = reply.offset
    index = chunk.index + begin
    count = len(reply.values)
    objects = chunk.objects if count == len(chunk.objects) else chunk.objects[begin : begin + count]
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


def max_failures_reached(limit: float | None, failed: int, ended: int) -> bool:
    """Whether more objects have failed than `max_failures` allows."""
    if limit is None or not failed:
        return False
    if isinstance(limit, int):
        return failed >= limit
    return ended >= MIN_ENDED_FOR_SHARE and failed >= limit * ended
