"""One run of a pipeline in the caller's thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from typing import Any

from .._reports.batches import OutcomeBatch
from .._runs.preparation import aliases_of_caller, check_job_picklable
from .._runs.querysets import as_queryset, source_of
from .._runs.run import Parts, Run
from .._worker.context import CapturedContext
from .._worker.job import call_spread
from .._worker.staged import StagedJob
from ..errors import InvalidOption
from .engine import PipelineEngine
from .planning import SegmentPlan, Stage, options_of_the_run, plan_segments, prepare_segment
from .report import PipelineReport, StageCounter


class PipelineRun(Run):
    """The same as a Run, with a line of hops in place of the engine."""

    def __init__(self, stages: Sequence[Stage], objects: Iterable[Any], name: str) -> None:
        options = options_of_the_run(stages)
        first = stages[0]
        queryset = None if first.work.call is call_spread else as_queryset(objects)
        stages = [first._replace(work=first.work._replace(queryset=queryset)), *stages[1:]]
        hops = [prepare_segment(hop) for hop in plan_segments(stages)]
        _refuse_shared_executors(hops)
        _take_turns(hops)
        for hop in hops:
            _carry_along(hop)
            check_job_picklable(hop.executor, hop.job)  # before others have been started
        source = source_of(objects, queryset)
        tallies = [StageCounter(stage.name, stage.options.workers) for stage in stages]
        report = PipelineReport[Any](tallies, keep=options.keep, queryset=queryset)
        self._line = PipelineEngine(hops, options, source, tallies)
        self._expands = any(stage.expands for stage in stages)
        report._unsafe = self._line.unsafe
        aliases = _aliases(hop for hop in hops if not hop.executor.inline)
        self._assemble(Parts(options, name, source, Workers(self._line), self._line, report, aliases))

    def _total(self) -> int | None:
        return None if self._expands else self._source.total

    def _in_order(self, batches: Iterator[OutcomeBatch]) -> Iterator[OutcomeBatch]:
        """Hold outcomes back until all of the objects before them have gone."""
        line, due = self._line, 0
        complete = line.complete = {}
        waiting: dict[int, list[OutcomeBatch]] = {}
        for batch in batches:
            line.held_back += len(batch.values)
            for place in range(len(batch.values)):
                index = batch.first + place
                waiting.setdefault(index, []).append(batch.alone(place, index))
            while due in complete and len(waiting.get(due, ())) == complete[due]:
                del complete[due]
                gone = sorted(waiting.pop(due), key=lambda one: one.order)
                line.held_back -= len(gone)
                due += 1
                yield from gone


class Workers:
    """All executors of a line, as far as a run speaks to them."""

    def __init__(self, line: PipelineEngine) -> None:
        self._line = line

    @property
    def inline(self) -> bool:
        return self._line.inline

    def wake(self) -> None:
        self._line.wake()

    def halt(self) -> None:
        self._line.halt_executors()


def _aliases(hops: Iterable[SegmentPlan]) -> tuple[str, ...]:
    found = [aliases_of_caller(stage.work, stage.options) for hop in hops for stage in hop.stages]
    return tuple(dict.fromkeys(chain.from_iterable(found)))


def _refuse_shared_executors(hops: Sequence[SegmentPlan]) -> None:
    for _identity, same in groupby(sorted(hops, key=lambda hop: id(hop.executor)), key=lambda hop: id(hop.executor)):
        first, *others = same
        if others:
            raise InvalidOption(
                "executor",
                first.executor,
                f"the stages {first.stages[0].name!r} and {others[0].stages[0].name!r} would use this instance at the "
                "same time: give each an instance of its own, or the same options, by which neighbours share workers",
            )


def _take_turns(hops: Sequence[SegmentPlan]) -> None:
    """A SQLite database in memory that threads share has one user at a time, whatever hop that belongs to."""
    jobs = [job for hop in hops for job in (hop.job, *_fused(hop))]
    turn = next((job.turn for job in jobs if job.turn is not None), None)
    for job in jobs:
        job.turn = turn if job.turn is not None else None


def _fused(hop: SegmentPlan) -> Sequence[Any]:
    return hop.job.stages if isinstance(hop.job, StagedJob) else ()


def _carry_along(hop: SegmentPlan) -> None:
    if isinstance(hop.job.carried, CapturedContext):
        captured = hop.job.carried.captured()
        for job in (hop.job, *_fused(hop)):
            job.carried = captured
