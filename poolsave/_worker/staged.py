"""Several stages of a pipeline in one worker: a chunk goes through all of them before it comes back.

Each stage keeps its own transactions. Objects go from stage to stage one by one, and none of them while a transaction
of another stage is open; a stage with one transaction per chunk first waits for all that come to it, outside of it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

from .._db.transactions import AttemptResult
from .._pickling.values import from_wire, to_wire
from .._runtime.foreign_exceptions import add_note
from ..executors.marks import HAD_FAILED, MARKS_PER_STAGE, WAS_LOST
from ..executors.protocol import Marks
from ..outcomes import DROP, Status
from .job import WorkerJob
from .per_chunk import ObjectResult
from .replies import ReplyBuilder
from .session import WorkerSession

ENDED = {Status.FAILED: HAD_FAILED, Status.LOST: WAS_LOST}


class Dropped(NamedTuple):
    """Comes back in place of a value from a stage that is not the last one of its worker."""

    stage: int


def call_across(call: Any, unseals: bool, seals: bool, *told: Any) -> Any:
    """A call whose object may come from another process, and whose value may go there."""
    *before, item = told
    value = call(*before, from_wire(item) if unseals else item)
    # Inside the transaction: what cannot cross is a failure that is rolled back.
    return to_wire(value) if seals else value


@dataclass(kw_only=True)
class StagedJob(WorkerJob):
    """What a worker needs to know that runs several stages; each of them is a job that crosses nothing itself."""

    stages: tuple[WorkerJob, ...] = ()
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, stages: Sequence[WorkerJob], names: Sequence[str], settings: Any) -> StagedJob:
        """Make one job of several, with these settings for the databases."""
        first, last = stages[0], len(stages) - 1
        crosses = first.crosses
        for number, job in enumerate(stages):
            # Rows come by their keys, which the session itself unseals.
            unseals, seals = crosses and number == 0 and job.queryset is None, crosses and number == last
            if unseals or seals:
                job.call = partial(call_across, job.call, unseals, seals)
            job.crosses = False
        told = {**vars(first), "crosses": crosses, "settings": settings}
        return cls(**told, stages=tuple(stages), names=tuple(names))

    def settle(self, note: int) -> Status:
        """Ask the database of the stages whose transactions are noted, which is one."""
        return next(job for job in self.stages if job.noted).settle(note)

    def session(self, stack: ExitStack, *, own_process: bool) -> WorkerSession:
        """Open every stage in one worker."""
        sessions = [job.session(ExitStack(), own_process=own_process) for job in self.stages]
        return StagedSession(self, sessions, stack.pop_all(), own_process=own_process)


class StagedItem:
    """One object on its way through the stages of a worker."""

    __slots__ = ("attempts", "end", "flaw", "offset", "open", "seconds", "stage", "value")

    def __init__(self, offset: int, value: Any, stages: int) -> None:
        self.offset = offset
        self.value = value
        self.open = True
        self.stage = 0
        self.end = AttemptResult(Status.SKIPPED)
        self.attempts = 0
        self.flaw: BaseException | None = None
        self.seconds = [0.0] * stages

    def take(self, stage: int, end: ObjectResult, attempts: int, name: str) -> None:
        """A stage is done with it."""
        self.stage, self.end, self.attempts = stage, end.attempt, attempts
        self.seconds[stage] = end.seconds
        self.value = end.attempt.value
        self.open = end.attempt.status is Status.SUCCEEDED and self.value is not DROP
        if end.attempt.status is Status.SUCCEEDED and end.attempt.error is not None:
            self.flaw = end.attempt.error if self.flaw is None else self.flaw
            add_note(end.attempt.error, f"poolsave: in an on_commit callback of the stage {name!r}")


class StageMarks:
    """The marks of one stage, for the objects that came to it."""

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


class StagedSession(WorkerSession):
    """A worker with one session per stage."""

    def __init__(
        self, job: StagedJob, sessions: Sequence[WorkerSession], stack: ExitStack, *, own_process: bool
    ) -> None:
        super().__init__(job, _never, None, stack, own_process=own_process)
        self._names = job.names
        self._stages = sessions
        self._whole = [one.transaction == "chunk" for one in job.stages]
        self._by_keys = job.stages[0].queryset is not None
        self._straight = False

    def _new_collector(self, waited: float) -> ReplyBuilder:
        return StagedReplyBuilder(self._name, waited, crosses=self._job.crosses, stages=len(self._stages))

    def _collected(self, objects: Sequence[Any], marks: Marks, collector: ReplyBuilder) -> Iterator[None]:
        assert isinstance(collector, StagedReplyBuilder)
        for passage in self._through(objects, marks):
            self._collect(collector, passage)
            yield

    def timed_out_since(self) -> bool:
        told = [one.timed_out_since() for one in self._stages]
        return any(told)

    def _through(self, objects: Sequence[Any], marks: Marks) -> Iterator[StagedItem]:
        passages = iter([StagedItem(offset, item, len(self._stages)) for offset, item in enumerate(objects)])
        for number in range(len(self._stages)):
            # The first stage takes all at once, too: rows are fetched by their range, and run one by one all the same.
            pass_on = self._all if self._whole[number] or number == 0 else self._each
            passages = pass_on(number, passages, marks)
        return passages

    def _all(self, number: int, incoming: Iterator[StagedItem], marks: Marks) -> Iterator[StagedItem]:
        passages = list(incoming)
        going = [one for one in passages if one.open]
        stage_marks = StageMarks(marks, number, [one.offset for one in going])
        ends = self._stages[number].ends([one.value for one in going], stage_marks)
        for passage in passages:
            if passage.open:
                self._take(passage, number, *next(ends), marks)
            yield passage

    def _each(self, number: int, incoming: Iterator[StagedItem], marks: Marks) -> Iterator[StagedItem]:
        ends, offsets = self._stages[number].ends, [0]
        stage_marks = StageMarks(marks, number, offsets)
        for passage in incoming:
            if passage.open:
                offsets[0] = passage.offset
                ((end, attempts),) = ends([passage.value], stage_marks)
                self._take(passage, number, end, attempts, marks)
            yield passage

    def _take(self, passage: StagedItem, number: int, end: ObjectResult, attempts: int, marks: Marks) -> None:
        passage.take(number, end, attempts, self._names[number])
        mark = ENDED.get(end.attempt.status)
        if mark is not None:
            marks.put(passage.offset, number * MARKS_PER_STAGE + mark)

    def _collect(self, collector: StagedReplyBuilder, passage: StagedItem) -> None:
        collector.note_seconds(passage.seconds)
        attempt = passage.end
        if passage.open and attempt.error is passage.flaw is None:
            collector.add(attempt, passage.attempts, 0.0)
            return
        if attempt.status is not Status.SUCCEEDED:
            attempt = attempt._replace(value=passage.stage)  # where it ended
        elif passage.value is DROP and passage.stage < len(self._stages) - 1:
            dropped = Dropped(passage.stage)
            attempt = attempt._replace(value=to_wire(dropped) if self._job.crosses else dropped)
        if attempt.error is None:
            attempt = attempt._replace(error=passage.flaw if attempt.status is Status.SUCCEEDED else None)
        if attempt.error is None:
            collector.add(attempt, passage.attempts, 0.0)
        else:
            self._add_error(collector, attempt.error, ObjectResult(attempt, 0.0), passage.attempts)


class StagedReplyBuilder(ReplyBuilder):
    """Times each stage: the column of seconds holds those of all objects in the first stage, then in the next one."""

    def __init__(self, worker: int | str, waited: float, *, crosses: bool, stages: int) -> None:
        self._by_stage: list[array[float]] = [array("d") for _ in range(stages)]
        super().__init__(worker, waited, crosses=crosses)

    def note_seconds(self, seconds: Sequence[float]) -> None:
        """What the next object took, stage by stage."""
        for column, one in zip(self._by_stage, seconds, strict=True):
            column.append(one)
        self.longest = max(self.longest, sum(seconds))

    def take(self) -> Any:
        self._seconds = array("d", chain.from_iterable(self._by_stage))
        self._by_stage = [array("d") for _ in self._by_stage]
        return super().take()


def _never(item: Any) -> Any:
    raise AssertionError(f"no stage was asked to run {item!r}")
