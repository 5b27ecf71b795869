"""Several stages of a pipeline in one worker: a chunk passes all of them before its reply is sent.

Each stage keeps its own transactions. Objects pass from stage to stage one by one, never while a transaction of another
stage is open. A stage with one transaction per chunk first gathers all its objects, before BEGIN.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ..._db.transactions import AttemptResult
from ..._db.write_behind.pacing import Batching
from ..._pickling.values import to_wire
from ..._runtime.foreign_exceptions import add_note
from ...executors.marks import HAD_FAILED, MARKS_PER_STAGE, WAS_LOST
from ...executors.protocol import Marks
from ...outcomes import DROP, Status
from ..job import WorkerJob
from ..replies import ObjectResult
from ..session import WorkerSession
from .transaction_modes import WithoutTransaction

MARKS_OF_STATUSES = {Status.FAILED: HAD_FAILED, Status.LOST: WAS_LOST}
"""The mark of an object that has ended in a stage but is not in a reply yet."""


@dataclass(kw_only=True)
class StagedJob(WorkerJob):
    """The job of a worker with several stages, each of which has a job of its own."""

    stages: tuple[WorkerJob, ...] = ()
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, stages: Sequence[WorkerJob], names: Sequence[str], settings: Any) -> StagedJob:
        """Join several jobs, with these settings for the databases."""
        fields = {**vars(stages[0]), "settings": settings}
        return cls(**fields, stages=tuple(stages), names=tuple(names))

    def capture_context(self) -> None:
        super().capture_context()
        for job in self.stages:
            job.context = self.context

    def settle(self, note: int) -> Status:
        """Ask the database of the one stage whose transactions are noted."""
        return next(job for job in self.stages if job.noted).settle(note)

    def session(self, stack: ExitStack, *, own_process: bool) -> WorkerSession:
        """Open every stage in one worker."""
        last = len(self.stages) - 1
        modes = [
            job.build_mode(
                job.bound_function(), unpickles=self.crosses and number == 0, pickles=self.crosses and number == last
            )
            for number, job in enumerate(self.stages)
        ]
        return WorkerSession(self, Stages(self, modes), stack, own_process=own_process)


class StagedItem:
    """One object in the stages of a worker."""

    __slots__ = ("attempts", "callback_error", "offset", "open", "result", "seconds", "stage", "value")

    def __init__(self, offset: int, value: Any, stages: int) -> None:
        self.offset = offset
        self.value = value
        self.open = True
        self.stage = 0
        self.result = AttemptResult(Status.SKIPPED)
        self.attempts = 0
        self.callback_error: BaseException | None = None
        self.seconds = [0.0] * stages

    def take(self, stage: int, result: ObjectResult, name: str) -> None:
        """Take the result of a stage."""
        self.stage, self.result, self.attempts = stage, result.attempt, result.attempts
        self.seconds[stage] = result.seconds
        self.value = result.attempt.value
        self.open = result.attempt.status is Status.SUCCEEDED and self.value is not DROP
        if result.attempt.status is Status.SUCCEEDED and result.attempt.error is not None:
            self.callback_error = result.attempt.error if self.callback_error is None else self.callback_error
            add_note(result.attempt.error, f"poolsave: in an on_commit callback of the stage {name!r}")


class StageMarks:
    """The marks of one stage, for the objects that reach it."""

    def __init__(self, marks: Marks, stage: int, offsets: Sequence[int]) -> None:
        self._marks = marks
        self._base = stage * MARKS_PER_STAGE
        self._offsets = offsets
        self.note = marks.note
        self.clock = marks.clock

    @property
    def halted(self) -> bool:
        return self._marks.halted

    def put(self, offset: int, mark: int) -> None:
        self._marks.put(self._offsets[offset], self._base + mark)

    def stamps(self, size: int, *, begun: int, ended: int) -> array[float]:
        raise AssertionError("the marks of one stage cannot stand for those of the chunk")


class Stages:
    """The transaction modes of several stages, in place of one."""

    def __init__(self, job: StagedJob, modes: Sequence[WithoutTransaction]) -> None:
        self._job = job
        self._modes = modes

    def results(self, objects: Sequence[Any], marks: Marks) -> Iterator[ObjectResult]:
        """Run the objects through all stages."""
        return map(self._result_of, self._run_stages(objects, marks))

    @property
    def knows_next(self) -> bool:
        """Whether the last stage knows its next result."""
        return self._modes[-1].knows_next

    @property
    def unreachable(self) -> tuple[str, str] | None:
        """What a stage has waited for in vain."""
        return next((mode.unreachable for mode in self._modes if mode.unreachable is not None), None)

    def lacks_database(self, error: BaseException, marks: Marks) -> bool:
        """Whether a stage has no database after this failure."""
        return any(mode.lacks_database(error, marks) for mode in self._modes)

    def pop_overloaded(self) -> bool:
        overloaded = [mode.pop_overloaded() for mode in self._modes]  # every flag is cleared
        return any(overloaded)

    def pop_timed_out(self) -> bool:
        """Whether the server has hit a time limit in any stage since the last call."""
        timed_out = [mode.pop_timed_out() for mode in self._modes]  # every flag is cleared
        return any(timed_out)

    def take_batching(self) -> Batching | None:
        """Give what `batch_writes` did in all stages since the last call, or None."""
        batchings = [batching for mode in self._modes if (batching := mode.take_batching()) is not None]
        return sum(batchings, Batching()) if batchings else None

    def _run_stages(self, objects: Sequence[Any], marks: Marks) -> Iterator[StagedItem]:
        staged_items = iter([StagedItem(offset, item, len(self._modes)) for offset, item in enumerate(objects)])
        for number, job in enumerate(self._job.stages):
            # The first stage takes all objects as well: rows are fetched by range, and still run one by one.
            run_stage = self._run_all if job.transaction == "chunk" or number == 0 else self._run_each
            staged_items = run_stage(number, staged_items, marks)
        return staged_items

    def _run_all(self, number: int, incoming: Iterator[StagedItem], marks: Marks) -> Iterator[StagedItem]:
        staged_items = list(incoming)
        open_items = [staged for staged in staged_items if staged.open]
        stage_marks = StageMarks(marks, number, [staged.offset for staged in open_items])
        results = self._modes[number].results([staged.value for staged in open_items], stage_marks)
        for staged in staged_items:
            if staged.open:
                self._note_result(staged, number, next(results), marks)
            yield staged

    def _run_each(self, number: int, incoming: Iterator[StagedItem], marks: Marks) -> Iterator[StagedItem]:
        results, offsets = self._modes[number].results, [0]
        stage_marks = StageMarks(marks, number, offsets)
        for staged in incoming:
            if staged.open:
                offsets[0] = staged.offset
                (result,) = results([staged.value], stage_marks)
                self._note_result(staged, number, result, marks)
            yield staged

    def _note_result(self, staged: StagedItem, number: int, result: ObjectResult, marks: Marks) -> None:
        staged.take(number, result, self._job.names[number])
        mark = MARKS_OF_STATUSES.get(result.attempt.status)
        if mark is not None:
            marks.put(staged.offset, number * MARKS_PER_STAGE + mark)

    def _result_of(self, staged: StagedItem) -> ObjectResult:
        attempt, last = staged.result, len(self._modes) - 1
        ended_in_stage = None if attempt.status is Status.SUCCEEDED and staged.stage == last else staged.stage
        if staged.stage < last:  # its value is for the next stage; only DROP goes back
            dropped = to_wire(DROP) if self._job.crosses else DROP
            attempt = attempt._replace(value=dropped if staged.value is DROP else None)
        if attempt.status is Status.SUCCEEDED and attempt.error is None:
            attempt = attempt._replace(error=staged.callback_error)
        return ObjectResult(attempt, sum(staged.seconds), staged.attempts, staged.seconds, ended_in_stage)
