"""What the death of a worker means for the objects of its chunk. Pure: events in, batches out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .._reports.batches import OutcomeBatch, Settle, unanswered_batch, value_lost_error
from ..errors import TimedOut, WorkerDied
from ..executors import Died
from ..executors.marks import COMMITTED, COMMITTING, HAD_FAILED, MARKS_PER_STAGE, NEW, PENDING, RUNNING
from ..outcomes import Status
from .chunking import Chunk

MAX_CRASHES_BEFORE_START = 3
"""Workers that may die with a chunk of which no object has started. Then the chunk is given up."""


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
        parts = chunk.parts(requeued)
        if known:
            return known, parts
        error = error_of_running(self._event, None, self._timeout)
        return retry_or_give_up(chunk, parts, error, at_once=self._event.overdue)

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
            return error_of_running(self._event, item, self._timeout)
        error = error_of_finished(self._event)
        if mark == PENDING and (self._running_stage is None or self._running_stage <= stage):
            error.add_note("poolsave: it was rolled back with the transaction that it shared with others of its chunk")
        elif mark != COMMITTED:  # its stage is done with its transaction
            error.add_note(
                f"poolsave: it was known as {status.value} by then, but its own error was lost with the worker"
            )
        return error


def error_of_finished(event: Died) -> WorkerDied:
    """Give the error of an object that the worker had finished, but not reported, when it died."""
    died = event.error
    return WorkerDied(died.exitcode, died.signal, None, died.details, afterwards=True)


def error_of_running(event: Died, item: Any, timeout: float | None) -> WorkerDied | TimedOut:
    """Give the error of the object that the worker was at."""
    died = WorkerDied(event.error.exitcode, event.error.signal, item, event.error.details)
    if not event.overdue or timeout is None:
        return died
    error = TimedOut(timeout, item)
    error.__cause__ = died
    return error


def _status_of_mark(mark: int, transaction: str | None) -> Status:
    if mark == COMMITTED:
        return Status.SUCCEEDED
    if mark in (PENDING, HAD_FAILED) or (mark == RUNNING and transaction is not None):
        return Status.FAILED
    return Status.LOST


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
