"""One segment of a pipeline: an engine that is fed by the segment before it, and the records that pass through it.

`PipelineEngine` makes the segments and connects them. Nothing here knows which segment comes next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from .._engine.chunking import max_lead
from .._engine.crashes import StageMode
from .._engine.engine import Engine
from .._engine.sources import Source
from .._engine.throttling import ThrottleGate, ThrottleMeter
from .._reports.batches import OutcomeBatch
from .._runs.preparation import OperationSpec
from .._worker.job import WorkerJob
from .._worker.modes.staged import StagedJob
from ..executors import Event, Executor, ProcessExecutor
from ..outcomes import DROP, Outcome, Status


class SegmentPlan(NamedTuple):
    """Stages side by side that run in the same workers, with their executor and job."""

    stages: Sequence[OperationSpec]
    executor: Executor
    job: WorkerJob


class InputObject:
    """One object of the input, and what is known of all values that it became."""

    __slots__ = ("ended", "failed", "index", "item", "saved", "unfinished")

    def __init__(self, index: int, item: Any) -> None:
        self.index = index
        self.item = item
        self.unfinished = 1
        """How many of its values have no outcome yet."""
        self.ended = 0
        """How many outcomes it has."""
        self.saved = False
        """Whether something of it may have been committed, so that it must not be fed again."""
        self.failed = False


class Record(NamedTuple):
    """A value on its way from one segment to the next."""

    origin: InputObject
    value: Any
    path: tuple[int, ...] = ()
    """Position among the values of each stage with `expand` that it has passed, the first such stage first."""
    seconds: float = 0.0
    flaw: BaseException | None = None
    """What an `on_commit` callback raised on the way."""


class SegmentResult(NamedTuple):
    """What a segment did to one record: the record goes on, or it has ended in one of the segment's stages."""

    record: Record
    stage: int
    value: Any
    outcome: Outcome[Any] | None
    """If there is more to say than the value."""
    dropped: bool
    worker: int | str | None
    stage_unknown: bool = False
    """Whether the record ended in any of the segment's stages: a dead worker does not say in which."""


class SegmentBuffer:
    """The source of a segment behind another one: takes records, and hands out their values."""

    total = None
    ready = False

    def __init__(self, expected: Callable[[], int | None]) -> None:
        self._expected = expected
        self._waiting: deque[Record] = deque()
        self._handed_out: dict[int, Record] = {}
        self._fed = 0
        self._closed = False

    def __len__(self) -> int:
        """How many records wait."""
        return len(self._waiting)

    def put(self, record: Record) -> None:
        self._waiting.append(record)

    def close(self) -> None:
        """Nothing more will be put in."""
        self._closed = True

    def claim(self, index: int) -> Record:
        """Take back the record whose value was handed out as the object of this index."""
        return self._handed_out.pop(index)

    @property
    def exhausted(self) -> bool:
        return self._closed and not self._waiting

    def remaining(self) -> int | None:
        coming = self._expected()
        return None if coming is None else coming + len(self._waiting)

    def gather(self, size: int, *, idle: bool) -> list[Any] | None:
        if not self._waiting or not (idle or self._closed or len(self._waiting) >= size):
            return None
        return self._hand_out(size)

    def give_up(self) -> list[Any]:
        return self._hand_out(len(self._waiting))

    def _hand_out(self, size: int) -> list[Any]:
        values = []
        for _ in range(min(size, len(self._waiting))):
            record = self._waiting.popleft()
            self._handed_out[self._fed] = record
            self._fed += 1  # as the engine counts
            values.append(record.value)
        return values


class Segment(Engine):
    """Runs the fused stages of one segment."""

    def __init__(self, plan: SegmentPlan, source: Source, meter: ThrottleMeter | None) -> None:
        self.stages = plan.stages
        self.executor = plan.executor
        transactions = [stage.options.transaction is not None for stage in plan.stages]
        self.saves = [any(transactions[:number]) for number in range(len(transactions) + 1)]
        """`saves[n]`: whether one of the first n stages has a transaction."""
        # The pipeline counts failures and asks throttles, over all segments.
        options = plan.stages[0].options.using(max_failures=None, throttle=())
        # Objects count for a pace where they come in, and only there.
        gate = None if meter is None else ThrottleGate(meter, counts_pace=not isinstance(source, SegmentBuffer))
        super().__init__(plan.executor, plan.job, options, source, gate)

    def _wait(self, timeout: float | None) -> Sequence[Event]:
        """Never wait: one thread drives all segments. `PipelineEngine` waits for all of them."""
        return super()._wait(0)

    def end_source(self) -> None:
        """Feed no more, also if the input has more by now. For a segment that is finished."""
        self._source.give_up()

    @property
    def activity(self) -> int:
        """A count that grows with every object that is fed, sent or ended."""
        return self._fed + self._ended + self._last_task_id

    @property
    def in_flight(self) -> int:
        """How many objects have been taken and not given back."""
        return self._fed - self._ended

    @property
    def is_busy(self) -> bool:
        """Whether the executor has tasks, and so will give events."""
        return bool(self._tasks)

    @property
    def can_proceed(self) -> bool:
        """Whether there is something to do without waiting."""
        runs_here = self._executor.inline and self.is_busy
        return runs_here or bool(self._ready) or (self._source.ready and self._has_room())

    @property
    def may_fork(self) -> bool:
        """Whether its start may fork this process."""
        return isinstance(self.executor, ProcessExecutor)

    def max_lead_over(self, other: Segment) -> int:
        """Give the most objects in flight that the next segment can use at its present speed."""
        capacity = other._flow.capacity(max(1, other.executor.workers), other._max_lead)
        return max_lead(capacity, workers=max(1, self.executor.workers))

    def names(self, result: SegmentResult) -> list[str]:
        """Name the stage that a record ended in, or all stages that it may have ended in."""
        return [stage.name for stage in (self.stages if result.stage_unknown else [self.stages[result.stage]])]

    def expected(self) -> int | None:
        """How many objects may still come out, if that is known."""
        coming = None if self.stages[-1].expands else self._source.remaining()
        return None if coming is None else coming + self.in_flight

    def results(self, batch: OutcomeBatch) -> Iterator[SegmentResult]:
        """Give the result of each record of a batch."""
        last = len(self.stages) - 1
        for offset, value in enumerate(batch.values):
            origin, _value, path, before, flaw = self._claim(batch, offset)
            record = Record(origin, None, path, before + batch.seconds[offset], flaw)
            outcome, stage = batch.notable.get(offset), batch.ended_in_stage.get(offset)
            if outcome is not None and outcome.status is not Status.SUCCEEDED:
                # A record that no stage has started ends in the first one.
                unknown = stage is None and last > 0 and outcome.status is Status.LOST
                yield SegmentResult(
                    record, stage or 0, None, outcome, dropped=False, worker=batch.worker, stage_unknown=unknown
                )
            else:
                stage = last if stage is None else stage
                yield SegmentResult(record, stage, value, outcome, dropped=value is DROP, worker=batch.worker)

    def _claim(self, batch: OutcomeBatch, offset: int) -> Record:
        if isinstance(self._source, SegmentBuffer):
            return self._source.claim(batch.first + offset)
        return Record(InputObject(batch.first + offset, batch.objects[offset]), None)

    def times(self, batch: OutcomeBatch) -> Sequence[float]:
        """Give the seconds of each stage."""
        return batch.stage_seconds or [sum(batch.seconds)] + [0.0] * (len(self.stages) - 1)

    def _stage_modes(self) -> Sequence[StageMode]:
        if not isinstance(self._job, StagedJob):
            return super()._stage_modes()
        return [StageMode(job.transaction, job.noted) for job in self._job.stages]
