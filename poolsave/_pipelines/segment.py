"""One hop of a pipeline: an engine that is fed by the hop before it, and what it tells about travelling objects."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

from .._engine.chunking import max_lead
from .._engine.crashes import StageMode
from .._engine.engine import Engine
from .._engine.sources import Source
from .._reports.batches import OutcomeBatch
from .._worker.staged import Dropped, StagedJob
from ..executors import Executor, ProcessExecutor
from ..outcomes import DROP, Outcome, Status
from .planning import SegmentPlan


class InputObject:
    """One object of the input, and what is known of all that it became."""

    __slots__ = ("ended", "failed", "index", "item", "open", "saved")

    def __init__(self, index: int, item: Any) -> None:
        self.index = index
        self.item = item
        self.open = 1
        """How much of it is on its way."""
        self.ended = 0
        """How many outcomes it has."""
        self.saved = False
        """Whether something of it may have been committed, so that it must not be fed again."""
        self.failed = False


class Record(NamedTuple):
    """A value on its way from one hop to the next."""

    origin: InputObject
    value: Any
    path: tuple[int, ...] = ()
    """Its places among the several values that the object, and these values in turn, became."""
    seconds: float = 0.0
    flaw: BaseException | None = None
    """What an `on_commit` callback raised on the way."""


class SegmentResult(NamedTuple):
    """What a hop did to one traveller: it goes on, or it has ended in one of the hop's stages."""

    traveller: Record
    stage: int
    value: Any
    outcome: Outcome[Any] | None
    """If there is more to say than the value."""
    dropped: bool
    worker: int | str | None
    unsure: bool = False
    """Nobody knows which of the hop's stages it was."""


class SegmentBuffer:
    """The source of a hop behind another one: takes travellers, and hands out their values."""

    ready = False

    def __init__(self, expected: Callable[[], int | None]) -> None:
        self._expected = expected
        self._waiting: deque[Record] = deque()
        self._handed: dict[int, Record] = {}
        self._fed = 0
        self._closed = False

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def put(self, traveller: Record) -> None:
        self._waiting.append(traveller)

    def close(self) -> None:
        """Nothing more will be put in."""
        self._closed = True

    def claim(self, index: int) -> Record:
        """Take back what was handed out as the object of this index."""
        return self._handed.pop(index)

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
            traveller = self._waiting.popleft()
            self._handed[self._fed] = traveller
            self._fed += 1  # as the engine counts
            values.append(traveller.value)
        return values


class NonBlockingExecutor:
    """An executor that never waits, so that one thread can look after several."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.inside = False
        """Whether control is in a function that runs in this thread."""

    def wait(self, _timeout: float | None) -> Any:
        self.inside = self._executor.inline
        try:
            events: Any = self._executor.wait(0)
        finally:
            self.inside = False
        return events

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)


class Segment(Engine):
    """Runs the fused stages of one hop."""

    def __init__(self, fused: SegmentPlan, source: Source) -> None:
        self.polled = NonBlockingExecutor(fused.executor)
        self.stages = fused.stages
        self.executor = fused.executor
        transactions = [stage.options.transaction is not None for stage in fused.stages]
        self.saves = [any(transactions[:number]) for number in range(len(transactions) + 1)]
        """Whether any of the first so many stages has a transaction."""
        # What counts failures is the whole run.
        options = fused.stages[0].options.using(max_failures=None)
        super().__init__(cast("Executor", self.polled), fused.job, options, source)

    @property
    def counted(self) -> int:
        """Grows with everything that is fed or ends."""
        return self._fed + self._ended + self._tickets

    @property
    def under_way(self) -> int:
        """How many objects have been taken and not given back."""
        return self._fed - self._ended

    @property
    def is_busy(self) -> bool:
        """Whether the executor has something that it will tell about."""
        return bool(self._tasks)

    @property
    def is_eager(self) -> bool:
        """Whether there is something to do without waiting."""
        due_here = self._executor.inline and self.is_busy
        return due_here or bool(self._aside) or (self._source.ready and self._has_room())

    @property
    def may_fork(self) -> bool:
        """Whether its start may fork this process."""
        return isinstance(self.executor, ProcessExecutor)

    def stay_ahead_of(self, other: Segment) -> None:
        """Take no more than the next hop has use for at its present speed."""
        capacity = other._pacing.capacity(max(1, other.executor.workers), other.bound)
        self.bound = max_lead(capacity, workers=max(1, self.executor.workers))

    def names(self, end: SegmentResult) -> list[str]:
        """The stage that an end was in, or all that it may have been in."""
        return [stage.name for stage in (self.stages if end.unsure else [self.stages[end.stage]])]

    def expected(self) -> int | None:
        """How many objects may still come out, if that is known."""
        coming = None if self.stages[-1].expands else self._source.remaining()
        return None if coming is None else coming + self.under_way

    def ends(self, batch: OutcomeBatch) -> Iterator[SegmentResult]:
        """What became of each traveller of a batch."""
        last = len(self.stages) - 1
        columns = [*batch.seconds] if len(batch.seconds) > len(batch.values) else []
        for place, value in enumerate(batch.values):
            seconds = sum(columns[place :: len(batch.values)]) if columns else batch.seconds[place]
            origin, _value, path, before, flaw = self._claim(batch, place)
            traveller = Record(origin, None, path, before + seconds, flaw)
            outcome = batch.notable.get(place)
            if outcome is not None and outcome.status is not Status.SUCCEEDED:
                told = outcome.value if last and isinstance(outcome.value, int) else None
                # What has not begun has ended in the first one.
                unsure = told is None and last > 0 and outcome.status is Status.LOST
                yield SegmentResult(
                    traveller, told or 0, None, outcome, dropped=False, worker=batch.worker, unsure=unsure
                )
            elif last and isinstance(value, Dropped):
                yield SegmentResult(traveller, value.stage, None, outcome, dropped=True, worker=batch.worker)
            else:
                yield SegmentResult(traveller, last, value, outcome, dropped=value is DROP, worker=batch.worker)

    def _claim(self, batch: OutcomeBatch, place: int) -> Record:
        if isinstance(self._source, SegmentBuffer):
            return self._source.claim(batch.first + place)
        return Record(InputObject(batch.first + place, batch.objects[place]), None)

    def times(self, batch: OutcomeBatch) -> list[float]:
        """The seconds of each stage."""
        size = len(batch.values)
        if len(batch.seconds) == size:
            return [sum(batch.seconds)] + [0.0] * (len(self.stages) - 1)
        columns = [*batch.seconds]
        return [sum(columns[start : start + size]) for start in range(0, len(columns), size)]

    def _stage_modes(self) -> Sequence[StageMode]:
        if not isinstance(self._job, StagedJob):
            return super()._stage_modes()
        return [StageMode(job.transaction, job.noted) for job in self._job.stages]
