"""One run of a pipeline in the caller's thread: its checks, its engine and the order of its outcomes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from operator import attrgetter
from typing import Any

from .._reports.batches import OutcomeBatch
from .._runs.preparation import aliases_of_caller, check_job_picklable
from .._runs.querysets import as_queryset, source_of
from .._runs.run import Run, RunParts
from .._worker.context import CapturedContext
from .._worker.job import call_spread
from .._worker.staged import StagedJob
from ..errors import InvalidOption
from .engine import PipelineEngine
from .planning import SegmentPlan, Stage, options_of_the_run, plan_segments, prepare_segment
from .report import PipelineReport, StageCounter


class PipelineRun(Run):
    """A Run with a PipelineEngine in place of the Engine."""

    def __init__(self, stages: Sequence[Stage], objects: Iterable[Any], name: str) -> None:
        options = options_of_the_run(stages)
        first = stages[0]
        queryset = None if first.work.call is call_spread else as_queryset(objects)
        stages = [first._replace(work=first.work._replace(queryset=queryset)), *stages[1:]]
        segments = [prepare_segment(segment) for segment in plan_segments(stages)]
        _refuse_shared_executors(segments)
        _share_serial_lock(segments)
        for segment in segments:
            _capture_context(segment)
            check_job_picklable(segment.executor, segment.job)  # before others have been started
        source = source_of(objects, queryset)
        counters = [StageCounter(stage.name, stage.options.workers) for stage in stages]
        report = PipelineReport[Any](counters, keep=options.keep, queryset=queryset)
        self._pipeline = PipelineEngine(segments, options, source, counters)
        self._expands = any(stage.expands for stage in stages)
        report._unsafe = self._pipeline.unsafe
        aliases = _aliases(segment for segment in segments if not segment.executor.inline)
        self._assemble(RunParts(options, name, source, Workers(self._pipeline), self._pipeline, report, aliases))

    def _total(self) -> int | None:
        return None if self._expands else self._source.total

    def _in_order(self, batches: Iterator[OutcomeBatch]) -> Iterator[OutcomeBatch]:
        """Hold outcomes back until all of the objects before them have left."""
        engine, next_index = self._pipeline, 0
        complete = engine.complete = {}
        waiting: dict[int, list[OutcomeBatch]] = {}
        for batch in batches:
            engine.undelivered += len(batch.values)
            for offset in range(len(batch.values)):
                index = batch.first + offset
                waiting.setdefault(index, []).append(batch.single(offset, index))
            while next_index in complete and len(waiting.get(next_index, ())) == complete[next_index]:
                del complete[next_index]
                batches_of_object = sorted(waiting.pop(next_index), key=attrgetter("order"))
                engine.undelivered -= len(batches_of_object)
                next_index += 1
                yield from batches_of_object


class Workers:
    """What a run asks of its executor, answered for all executors of a pipeline."""

    def __init__(self, engine: PipelineEngine) -> None:
        self._pipeline = engine

    @property
    def inline(self) -> bool:
        return self._pipeline.inline

    def wake(self) -> None:
        self._pipeline.wake()

    def halt(self) -> None:
        self._pipeline.halt_executors()


def _aliases(segments: Iterable[SegmentPlan]) -> tuple[str, ...]:
    aliases = [aliases_of_caller(stage.work, stage.options) for segment in segments for stage in segment.stages]
    return tuple(dict.fromkeys(chain.from_iterable(aliases)))


def _refuse_shared_executors(segments: Sequence[SegmentPlan]) -> None:
    def identity(segment: SegmentPlan) -> int:
        return id(segment.executor)

    for _identity, same in groupby(sorted(segments, key=identity), key=identity):
        first, *others = same
        if others:
            raise InvalidOption(
                "executor",
                first.executor,
                f"the stages {first.stages[0].name!r} and {others[0].stages[0].name!r} would use this instance at the "
                "same time: give each an instance of its own, or the same options, by which neighbours share workers",
            )


def _share_serial_lock(segments: Sequence[SegmentPlan]) -> None:
    """Give all jobs one lock: threads take turns on a SQLite database in memory, across all segments."""
    jobs = [job for segment in segments for job in (segment.job, *_stage_jobs(segment))]
    lock = next((job.serial_lock for job in jobs if job.serial_lock is not None), None)
    for job in jobs:
        job.serial_lock = lock if job.serial_lock is not None else None


def _stage_jobs(segment: SegmentPlan) -> Sequence[Any]:
    return segment.job.stages if isinstance(segment.job, StagedJob) else ()


def _capture_context(segment: SegmentPlan) -> None:
    if isinstance(segment.job.context, CapturedContext):
        captured = segment.job.context.captured()
        for job in (segment.job, *_stage_jobs(segment)):
            job.context = captured
