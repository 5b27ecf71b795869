"""What the death of a worker that runs several stages means for the objects of its chunk. Pure: an event in, batches
out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .._db.transactions import COMMITTED, COMMITTING, PENDING, RUNNING
from .._reports.batches import OutcomeBatch, unanswered_batch
from .._worker.staged import HAD_FAILED, MARKS_PER_STAGE, StagedJob
from ..errors import WorkerDied
from ..executors import Died
from ..outcomes import Status
from .crashes import NEW, Chunk, crash_error, retry_or_give_up, subchunks, value_lost_error


class StagedCrash:
    """Goes by the marks that the worker left. Only the object that it was at is blamed."""

    def __init__(
        self, job: StagedJob, event: Died, *, timeout: float | None, settle: Callable[[int], Status], exact: bool
    ) -> None:
        self._job = job
        self._event = event
        self._timeout = timeout
        self._settle = settle
        self._exact = exact
        """Whether the marks are the worker's own; otherwise nobody knows how far it was with anything."""
        places = [divmod(code, MARKS_PER_STAGE) for code in event.marks]
        self._at = max((stage for stage, mark in places if mark in (RUNNING, COMMITTING)), default=None)

    def judged(self, chunk: Chunk) -> tuple[list[OutcomeBatch], list[Chunk]]:
        """As with one stage, but what has left its first stage cannot be run again: the value is gone, and to compute
        it once more would be to run the first stage twice.

        The value of each outcome is the stage that it ended in, or None if nobody knows.
        """
        known: list[OutcomeBatch] = []
        again: list[int] = []
        for offset in range(chunk.answered, len(chunk.objects)):
            index, item, code = chunk.index + offset, chunk.objects[offset], self._event.marks[offset]
            stage, mark = divmod(code, MARKS_PER_STAGE)
            if code == NEW or (stage == 0 and self._is_rolled_back(mark)):
                again.append(offset)
                continue
            status, ended = self._verdict(stage, mark)
            error = self._error(item, stage, mark, status)
            if mark == COMMITTED or status is Status.SUCCEEDED or ended != stage:
                error = value_lost_error(index, error)
            batch = unanswered_batch(index, [item], status, error, attempts=1)
            told = replace(batch.notable[0], value=ended if self._exact else None)
            known.append(batch._replace(notable={0: told}))
        parts = subchunks(chunk, again)
        return (known, parts) if known else retry_or_give_up(chunk, parts, self._event)

    def _is_rolled_back(self, mark: int) -> bool:
        return mark == PENDING or (mark == HAD_FAILED and self._job.stages[0].transaction == "chunk")

    def _verdict(self, stage: int, mark: int) -> tuple[Status, int]:
        """How an object ended, and in which stage."""
        job = self._job.stages[stage]
        status = _status_of(mark, job.transaction)
        if mark == COMMITTING and job.noted and self._event.note:
            status = self._settle(self._event.note)
        if status is Status.SUCCEEDED and stage < len(self._job.stages) - 1:
            return Status.FAILED, stage + 1  # which has not begun, and never will: its value is gone
        return status, stage

    def _error(self, item: Any, stage: int, mark: int, status: Status) -> BaseException:
        if mark in (RUNNING, COMMITTING):
            return crash_error(self._event, item, self._timeout)
        died = self._event.error
        error = WorkerDied(died.exitcode, died.signal, None, died.details, afterwards=True)
        if mark == PENDING and (self._at is None or self._at <= stage):
            error.add_note("poolsave: it was rolled back with the transaction that it shared with others of its chunk")
        elif mark != COMMITTED:  # its stage is done with its transaction
            error.add_note(
                f"poolsave: it was known as {status.value} by then, but its own error was lost with the worker"
            )
        return error


def _status_of(mark: int, transaction: str | None) -> Status:
    if mark == COMMITTED:
        return Status.SUCCEEDED
    if mark in (PENDING, HAD_FAILED) or (mark == RUNNING and transaction is not None):
        return Status.FAILED
    return Status.LOST
