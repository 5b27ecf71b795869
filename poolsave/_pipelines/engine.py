"""The hops of a pipeline, driven by one thread: what one of them gives is what the next one is fed with.

Nothing piles up: what waits for the next hop counts for the window of the hop that it came from, and no hop is further
ahead of the next one than that can make use of. So a slow hop slows the one before it, and so on up to the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from .._engine.crashes import max_failures_reached
from .._engine.sources import Source
from .._reports.batches import OutcomeBatch
from .._runtime.foreign_exceptions import is_a
from ..errors import ValueLost
from ..options import Options
from ..outcomes import Outcome, Status
from .output import OutputBatches, annotate_origin
from .planning import SegmentPlan
from .report import StageCounter
from .segment import InputObject, Record, Segment, SegmentBuffer, SegmentResult
from .selector import ExecutorSelector


class PipelineEngine:
    """Has the methods of an Engine. Call `start`, then `step` until `finished`, then `close`."""

    def __init__(
        self, fused: Sequence[SegmentPlan], options: Options, source: Source, tallies: Sequence[StageCounter]
    ) -> None:
        self._options = options
        self._hops: list[Segment] = []
        self._belts: list[SegmentBuffer] = []
        self._tallies: list[list[StageCounter]] = []
        names = iter(tallies)
        for one in fused:
            if self._hops:
                source = SegmentBuffer(self._hops[-1].expected)
                self._belts.append(source)
            self._hops.append(Segment(one, source))
            self._tallies.append([next(names) for _ in one.stages])
        self._finals = OutputBatches()
        self._bell: ExecutorSelector | None = None
        self._ended = 0
        self._failed = 0
        self.held_back = 0
        """Outcomes that have not yet left for the caller (ordered streams); they count for the first window."""
        self.complete: dict[int, int] | None = None
        """If anybody wants to know: how many outcomes an object of the input has, once it has them all."""
        self.unsafe: set[int] = set()
        """Objects that have failed, though something of them may have been committed."""
        self.stopped: str | None = None
        """Why feeding stopped before the input was exhausted."""

    @property
    def fatal(self) -> BaseException | None:
        """What makes it impossible to go on."""
        return next((hop.fatal for hop in self._hops if hop.fatal is not None), None)

    @property
    def inline(self) -> bool:
        """Whether control is in a function that runs in this thread."""
        return any(hop.polled.inside for hop in self._hops)

    @property
    def finished(self) -> bool:
        """Whether everything that was fed has ended and no more will be fed."""
        return not self._finals and all(hop.finished for hop in self._hops)

    def start(self) -> None:
        """Start the workers of all hops: own processes first, so that they are not forked beside others' threads."""
        self._close_belts()
        started = [hop for hop in self._hops if not hop.finished]  # none if there is no input
        for hop in sorted(started, key=lambda hop: (not hop.may_fork, hop.executor.shares_memory)):
            hop.start()
        self._bell = ExecutorSelector()
        for hop in started:
            self._bell.listen_to(hop.executor)

    def step(self) -> list[OutcomeBatch]:
        """Do what can be done now, and give what has ended, waiting if there is nothing to do."""
        before = self._progress()
        for place in reversed(range(len(self._hops))):
            self._advance(place)
        self._close_belts()
        self._spread_the_word()
        idle = not self._finals and self._progress() == before
        if idle and not self.finished and not any(hop.is_eager for hop in self._hops):
            assert self._bell is not None
            self._bell.wait([hop.executor for hop in self._hops if hop.is_busy])
        return self._finals.take()

    def _progress(self) -> int:
        return sum(hop.counted for hop in self._hops) + sum(belt.exhausted for belt in self._belts)

    def _advance(self, place: int) -> None:
        hop = self._hops[place]
        hop.held_back = self.held_back if place == 0 else 0
        if not self._is_last(place):
            hop.held_back += len(self._belts[place])
            hop.stay_ahead_of(self._hops[place + 1])
        for batch in hop.step():
            self._deliver(place, batch)

    def _close_belts(self) -> None:
        for hop, belt in zip(self._hops, self._belts, strict=False):
            if hop.finished:
                belt.close()
                if self._bell is not None:
                    self._bell.leave(hop.executor)

    def _spread_the_word(self) -> None:
        for hop in self._hops:
            if hop.stopped is not None and self.stopped is None:
                self.halt(hop.stopped)
        if self.stopped is None and self._too_many():
            limit = self._options.max_failures
            self.halt(f"{self._failed} of {self._ended} outcomes are failures (max_failures={limit!r})")

    def _too_many(self) -> bool:
        return max_failures_reached(self._options.max_failures, self._failed, self._ended)

    def halt(self, reason: str) -> None:
        """Feed no more: what runs is finished, what a stage has not begun is skipped there."""
        if self.stopped is None and not self.finished:
            self.stopped = reason
        for hop in self._hops:
            hop.halt(reason)
            self._close_belts()

    def kill(self) -> None:
        """End what runs, at once where that is possible."""
        for hop in self._hops:
            hop.kill()

    def close(self) -> None:
        """Stop all executors; nothing of them is left behind."""
        with ExitStack() as stack:
            if self._bell is not None:
                stack.callback(self._bell.close)
            for hop in self._hops:
                stack.callback(hop.close)

    def lose_rest(self) -> list[OutcomeBatch]:
        """After `close`: end what has not ended, because the run could not go on until then."""
        for place, hop in enumerate(self._hops):
            for batch in hop.lose_rest():
                self._deliver(place, batch)
        return self._finals.take()

    def wake(self) -> None:
        """In a signal handler: end a wait."""
        if self._bell is not None:
            self._bell.ring_from_signal()

    def halt_executors(self) -> None:
        """At the interpreter's exit."""
        for hop in self._hops:
            hop.polled.halt()

    def _deliver(self, place: int, batch: OutcomeBatch) -> None:
        hop, tallies = self._hops[place], self._tallies[place]
        for tally, seconds in zip(tallies, hop.times(batch), strict=True):
            tally.seconds += seconds
        for end in hop.ends(batch):
            for number in range(end.stage):
                tallies[number].pass_on()
            self._take(place, end)

    def _take(self, place: int, end: SegmentResult) -> None:
        hop, outcome, origin = self._hops[place], end.outcome, end.traveller.origin
        # Before its own stage it has passed all others of the hop, and that may have committed, too.
        if hop.saves[end.stage] or (hop.saves[end.stage + 1] and _may_be_saved(outcome)):
            origin.saved = True
        if outcome is not None and outcome.status is not Status.SUCCEEDED:
            self._finish_badly(place, end, outcome, outcome.status)
        elif outcome is not None and is_a(outcome.error, ValueLost) and not self._is_last(place):
            self._tallies[place][end.stage].pass_on()
            # It was saved, but what the next stage needs is gone: that one has not begun, and never will.
            self._finish_badly(place + 1, end._replace(stage=0), outcome, Status.FAILED)
        elif end.dropped:
            self._drop(place, end)
        elif hop.stages[end.stage].expands and not (outcome is not None and is_a(outcome.error, ValueLost)):
            self._expand(place, end)
        else:
            self._tallies[place][end.stage].pass_on()
            self._go_on(place, end, end.traveller, end.value)

    def _is_last(self, place: int) -> bool:
        return place == len(self._hops) - 1

    def _finish_badly(self, place: int, end: SegmentResult, outcome: Outcome[Any], status: Status) -> None:
        self._tallies[place][end.stage].end(status)
        names = self._hops[place].names(end)
        if outcome.error is not None:
            annotate_origin(outcome.error, end.traveller, names, never_began=is_a(outcome.error, ValueLost))
        told = replace(outcome, status=status, value=None, stage=" + ".join(names))
        self._finish(end.traveller, None, end.worker, told)

    def _drop(self, place: int, end: SegmentResult) -> None:
        self._tallies[place][end.stage].end(Status.DROPPED)
        told: Outcome[Any] = Outcome(index=0, status=Status.DROPPED, stage=self._hops[place].stages[end.stage].name)
        if end.outcome is not None:
            told = replace(end.outcome, status=told.status, value=None, stage=told.stage)
        self._finish(end.traveller, None, end.worker, replace(told, worker=end.worker))

    def _expand(self, place: int, end: SegmentResult) -> None:
        traveller, tally = end.traveller, self._tallies[place][end.stage]
        if not end.value:
            self._drop(place, end)
            return
        traveller.origin.open += len(end.value) - 1
        tally.fed += 1
        for number, value in enumerate(end.value):
            child = traveller._replace(path=(*traveller.path, number))
            if number:
                child = child._replace(seconds=0.0)  # that time belongs to the first of them
            tally.out += 1
            self._go_on(place, end, child, value)

    def _go_on(self, place: int, end: SegmentResult, traveller: Record, value: Any) -> None:
        outcome = end.outcome
        flaw = traveller.flaw or (None if outcome is None else outcome.error)
        if not self._is_last(place):
            self._belts[place].put(traveller._replace(value=value, flaw=flaw))
            return
        told = None
        if outcome is not None or flaw is not None:
            told = outcome or Outcome(index=0, status=Status.SUCCEEDED, worker=end.worker)
            told = replace(told, value=value, error=flaw)
            if isinstance(flaw, ValueLost):
                told = replace(told, value=None)
                annotate_origin(flaw, traveller, self._hops[place].names(end))
        self._finish(traveller, value, end.worker, told)

    def _finish(self, traveller: Record, value: Any, worker: int | str | None, outcome: Outcome[Any] | None) -> None:
        origin = traveller.origin
        status = Status.SUCCEEDED if outcome is None else outcome.status
        if outcome is not None:
            outcome = replace(outcome, index=origin.index, item=origin.item, seconds=traveller.seconds)
        self._finals.add(traveller, value, worker, outcome)
        self._ended += 1
        if status in (Status.FAILED, Status.LOST):
            self._failed += 1
            origin.failed = True
        origin.saved = origin.saved or status in (Status.SUCCEEDED, Status.LOST)
        self._settle(origin)

    def _settle(self, origin: InputObject) -> None:
        origin.ended += 1
        origin.open -= 1
        if origin.open:
            return
        if origin.failed and origin.saved:
            self.unsafe.add(origin.index)
        if self.complete is not None:
            self.complete[origin.index] = origin.ended


def _may_be_saved(outcome: Outcome[Any] | None) -> bool:
    return outcome is None or outcome.status in (Status.SUCCEEDED, Status.LOST)
