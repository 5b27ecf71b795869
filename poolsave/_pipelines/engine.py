"""The engine of a pipeline: one thread drives all segments, and each one feeds the next.

A `Run` drives it as it drives an `Engine`. What runs inside one segment is not decided here: a `Segment` is
an `Engine` itself.

    source -> Segment -> SegmentBuffer -> Segment -> SegmentBuffer -> Segment -> OutputBatches

Back-pressure: the window of a segment includes what waits in the buffer behind it, and its lead over the next segment
is limited to what that one can use. So a slow segment slows all segments before it, up to the input.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from .._engine.sources import Source
from .._engine.throttling import ThrottleMeter
from .._reports.batches import OutcomeBatch
from .._reports.causes import exception_chain
from .._reports.trials import Trial
from .._runtime.foreign_exceptions import add_note, is_a, repr_of
from ..errors import TimedOut, ValueLost, WorkerDied
from ..options import Options, max_failures_reached
from ..outcomes import Outcome, Status
from ..throttles._reading import RunView
from .report import StageCounter
from .segment import Record, Segment, SegmentBuffer, SegmentPlan, SegmentResult
from .selector import ExecutorSelector


class PipelineEngine:
    """Has the methods of an Engine. Call `start`, then `step` until `finished`, then `close`."""

    def __init__(
        self,
        plans: Sequence[SegmentPlan],
        options: Options,
        source: Source,
        counters: Sequence[StageCounter],
        note_unsafe: Callable[[int], None],
    ) -> None:
        """`note_unsafe` gets each object that has failed though something of it may have been committed."""
        self._options = options
        self._segments: list[Segment] = []
        self._buffers: list[SegmentBuffer] = []
        self._counters: list[list[StageCounter]] = []
        remaining = iter(counters)
        self.meter: ThrottleMeter | None = None
        if options.throttle:
            databases = dict.fromkeys(alias for plan in plans for stage in plan.stages for alias in stage.covered)
            run = RunView(databases=(*databases,), busy=lambda: sum(segment.busy for segment in self._segments))
            self.meter = ThrottleMeter(options.throttle, run)
        for plan in plans:
            if self._segments:
                source = SegmentBuffer(self._segments[-1].expected)
                self._buffers.append(source)
            self._segments.append(Segment(plan, source, self.meter))
            self._counters.append([next(remaining) for _ in plan.stages])
        self._output = OutputBatches()
        self._selector: ExecutorSelector | None = None
        self._ended = 0
        self._failed = 0
        self._note_unsafe = note_unsafe
        self._expands = any(stage.expands for plan in plans for stage in plan.stages)
        self.stopped: str | None = None
        """Why feeding stopped before the input was exhausted."""

    @property
    def fatal(self) -> BaseException | None:
        """What makes it impossible to go on."""
        return next((segment.fatal for segment in self._segments if segment.fatal is not None), None)

    @property
    def inside(self) -> bool:
        """Whether control is in a function that runs in this thread."""
        return any(segment.inside for segment in self._segments)

    @property
    def inline(self) -> bool:
        """Whether an object runs in the caller's thread now, and so inside the caller's transactions."""
        return self.inside

    @property
    def has_workers(self) -> bool:
        """Whether objects run elsewhere than in the caller's thread."""
        return not all(segment.executor.inline for segment in self._segments)

    @property
    def total(self) -> int | None:
        """How many outcomes there will be, if that is known. It may cost a query."""
        return None if self._expands else self._segments[0].total

    def trials(self) -> tuple[Trial, ...]:
        """None: executors are decided before the first object."""
        return ()

    @property
    def finished(self) -> bool:
        """Whether everything that was fed has ended and no more will be fed."""
        return not self._output and all(segment.finished for segment in self._segments)

    def start(self) -> None:
        """Start the workers of all segments. Own processes come first, so that no fork happens beside other threads."""
        self._close_buffers()
        started = [segment for segment in self._segments if not segment.finished]  # none if there is no input
        for segment in sorted(started, key=lambda segment: (not segment.may_fork, segment.executor.shares_memory)):
            segment.start()
        self._selector = ExecutorSelector()
        for segment in started:
            self._selector.register(segment.executor)

    def step(self, *, undelivered: int = 0) -> list[OutcomeBatch]:
        """Do what can be done now, and give what has ended, waiting if there is nothing to do.

        `undelivered` outcomes wait behind the engine; they count for the first window.
        """
        before = self._activity()
        for index in reversed(range(len(self._segments))):
            self._advance(index, undelivered if index == 0 else 0)
        self._close_buffers()
        self._halt_if_needed()
        idle = not self._output and self._activity() == before
        if idle and not self.finished and not any(segment.can_proceed for segment in self._segments):
            assert self._selector is not None
            self._selector.wait([segment.executor for segment in self._segments if segment.is_busy])
        return self._output.take()

    def _activity(self) -> int:
        return sum(segment.activity for segment in self._segments) + sum(buffer.exhausted for buffer in self._buffers)

    def _advance(self, index: int, undelivered: int) -> None:
        segment, max_lead = self._segments[index], None
        if not self._is_last(index):
            undelivered += len(self._buffers[index])
            max_lead = segment.max_lead_over(self._segments[index + 1])
        for batch in segment.step(undelivered=undelivered, max_lead=max_lead):
            self._deliver(index, batch)

    def _close_buffers(self) -> None:
        for segment, buffer in zip(self._segments, self._buffers, strict=False):
            if segment.finished:
                segment.end_source()
                buffer.close()
                if self._selector is not None:
                    self._selector.unregister(segment.executor)

    def _halt_if_needed(self) -> None:
        for segment in self._segments:
            if segment.stopped is not None and self.stopped is None:
                self.halt(segment.stopped)
        limit = self._options.max_failures
        if self.stopped is None and max_failures_reached(limit, self._failed, self._ended):
            self.halt(f"{self._failed} of {self._ended} outcomes are failures (max_failures={limit!r})")

    def halt(self, reason: str) -> None:
        """Feed no more. What runs is finished; what a stage has not started is skipped there."""
        if self.stopped is None and not self.finished:
            self.stopped = reason
        for segment in self._segments:
            segment.halt(reason)
            self._close_buffers()

    def kill(self) -> None:
        """End what runs, at once where that is possible."""
        for segment in self._segments:
            segment.kill()

    def close(self) -> None:
        """Stop all executors; nothing of them is left behind."""
        with ExitStack() as stack:
            if self._selector is not None:
                stack.callback(self._selector.close)
            for segment in self._segments:
                stack.callback(segment.close)

    def lose_rest(self) -> list[OutcomeBatch]:
        """After `close`: end what has not ended, because the run could not go on until then."""
        for index, segment in enumerate(self._segments):
            for batch in segment.lose_rest():
                self._deliver(index, batch)
        return self._output.take()

    def wake(self) -> None:
        """In a signal handler: end a wait."""
        if self._selector is not None:
            self._selector.wakeup_from_signal()

    def abandon(self) -> None:
        """At the interpreter's exit: have the workers end, without waiting for them."""
        for segment in self._segments:
            segment.abandon()

    def _deliver(self, index: int, batch: OutcomeBatch) -> None:
        segment, counters = self._segments[index], self._counters[index]
        for counter, seconds in zip(counters, segment.times(batch), strict=True):
            counter.seconds += seconds
            counter.workers = max(counter.workers, segment.executor.workers)  # their number may grow
        for result in segment.results(batch):
            for number in range(result.stage):
                counters[number].pass_on()
            self._handle(index, result)

    def _handle(self, index: int, result: SegmentResult) -> None:
        segment, outcome, origin = self._segments[index], result.outcome, result.record.origin
        # The record has passed all earlier stages of the segment, and each of them may have committed.
        if segment.saves[result.stage] or (segment.saves[result.stage + 1] and _may_be_saved(outcome)):
            origin.saved = True
        if outcome is not None and outcome.status is not Status.SUCCEEDED:
            self._end_unsuccessfully(index, result, outcome, outcome.status)
        elif outcome is not None and is_a(outcome.error, ValueLost) and not self._is_last(index):
            self._counters[index][result.stage].pass_on()
            # The record is saved, but its value is lost, so the next stage never starts for it.
            self._end_unsuccessfully(index + 1, result._replace(stage=0), outcome, Status.FAILED)
        elif result.dropped:
            self._drop(index, result)
        elif segment.stages[result.stage].expands and not (outcome is not None and is_a(outcome.error, ValueLost)):
            self._expand(index, result)
        else:
            self._counters[index][result.stage].pass_on()
            self._pass_on(index, result, result.record, result.value)

    def _is_last(self, index: int) -> bool:
        return index == len(self._segments) - 1

    def _end_unsuccessfully(self, index: int, result: SegmentResult, outcome: Outcome[Any], status: Status) -> None:
        self._counters[index][result.stage].end(status)
        names = self._segments[index].names(result)
        if outcome.error is not None:
            annotate_origin(outcome.error, result.record, names, never_started=is_a(outcome.error, ValueLost))
        ended = replace(outcome, status=status, value=None, stage=" + ".join(names))
        self._finish(result.record, None, result.worker, ended)

    def _drop(self, index: int, result: SegmentResult) -> None:
        self._counters[index][result.stage].end(Status.DROPPED)
        stage = self._segments[index].stages[result.stage].name
        outcome: Outcome[Any] = result.outcome or Outcome(index=0, status=Status.DROPPED)
        outcome = replace(outcome, status=Status.DROPPED, value=None, stage=stage, worker=result.worker)
        self._finish(result.record, None, result.worker, outcome)

    def _expand(self, index: int, result: SegmentResult) -> None:
        record, counter = result.record, self._counters[index][result.stage]
        if not result.value:
            self._drop(index, result)
            return
        record.origin.unfinished += len(result.value) - 1
        counter.fed += 1
        for number, value in enumerate(result.value):
            child = record._replace(path=(*record.path, number))
            if number:
                child = child._replace(seconds=0.0)  # the first child has the time
            counter.out += 1
            self._pass_on(index, result, child, value)

    def _pass_on(self, index: int, result: SegmentResult, record: Record, value: Any) -> None:
        outcome = result.outcome
        flaw = record.flaw or (None if outcome is None else outcome.error)
        if not self._is_last(index):
            self._buffers[index].put(record._replace(value=value, flaw=flaw))
            return
        if outcome is not None or flaw is not None:
            outcome = outcome or Outcome(index=0, status=Status.SUCCEEDED, worker=result.worker)
            outcome = replace(outcome, value=value, error=flaw)
            if isinstance(flaw, ValueLost):
                outcome = replace(outcome, value=None)
                annotate_origin(flaw, record, self._segments[index].names(result))
        self._finish(record, value, result.worker, outcome)

    def _finish(self, record: Record, value: Any, worker: int | str | None, outcome: Outcome[Any] | None) -> None:
        origin = record.origin
        status = Status.SUCCEEDED if outcome is None else outcome.status
        if outcome is not None:
            outcome = replace(outcome, index=origin.index, item=origin.item, seconds=record.seconds)
        self._ended += 1
        if status in (Status.FAILED, Status.LOST):
            self._failed += 1
            origin.failed = True
        origin.saved = origin.saved or status in (Status.SUCCEEDED, Status.LOST)
        origin.ended += 1
        origin.unfinished -= 1
        if origin.failed and origin.saved and not origin.unfinished:
            self._note_unsafe(origin.index)
        self._output.add(record, value, worker, outcome)


def _may_be_saved(outcome: Outcome[Any] | None) -> bool:
    return outcome is None or outcome.status in (Status.SUCCEEDED, Status.LOST)


class OutputBatches:
    """Gathers ended records. Those that stand side by side in the input share a batch."""

    def __init__(self) -> None:
        self._batches: list[OutcomeBatch] = []

    def __bool__(self) -> bool:
        return bool(self._batches)

    def take(self) -> list[OutcomeBatch]:
        """Give what has been gathered."""
        batches, self._batches = self._batches, []
        return batches

    def add(self, record: Record, value: Any, worker: int | str | None, outcome: Outcome[Any] | None) -> None:
        """Add a record that has ended."""
        batch = self._open_batch(record, worker)
        offset = len(batch.values)
        if outcome is not None:
            batch.notable[offset] = outcome
        batch.values.append(value)  # type: ignore[attr-defined]
        batch.objects.append(record.origin.item)  # type: ignore[attr-defined]
        batch.seconds.append(record.seconds)  # type: ignore[union-attr]

    def _open_batch(self, record: Record, worker: int | str | None) -> OutcomeBatch:
        index = record.origin.index
        if self._batches and not record.path:
            last = self._batches[-1]
            if not last.path and last.first + len(last.values) == index and last.worker == worker:
                return last
        batch = OutcomeBatch(index, [], array("d"), [], worker, {}, record.path)
        if record.path:
            batch = batch._replace(outcomes_of_object=0 if record.origin.unfinished else record.origin.ended)
        self._batches.append(batch)
        return batch


def annotate_origin(
    error: BaseException, record: Record, stages: Sequence[str], *, never_started: bool = False
) -> None:
    """Rewrite an error's item, index and stage to those of the original input object.

    `stages` are the stages that the error may come from. `never_started` says that the stage needs a value that was
    lost.
    """
    origin = record.origin
    where = f"the stage {stages[0]!r}" if len(stages) == 1 else f"one of the stages {', '.join(map(repr, stages))}"
    add_note(error, f"poolsave: in {where}, with what came of object {origin.index} of the input")
    if record.flaw is not None:
        add_note(error, f"poolsave: on the way there an on_commit callback raised {repr_of(record.flaw)}")
    for cause in exception_chain(error):
        if (is_a(cause, WorkerDied) or is_a(cause, TimedOut)) and cause.item is not None:
            cause.item = origin.item
        elif is_a(cause, ValueLost):
            cause.index = origin.index
            cause.stage = stages[0] if never_started else None
