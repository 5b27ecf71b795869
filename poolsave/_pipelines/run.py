"""The run of a pipeline: its checks, its engine, and what its segments share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from .._runs.operation_spec import OperationSpec
from .._runs.preflight import check_job_picklable
from .._runs.querysets import source_of
from .._runs.run import Run
from .._worker.staged import StagedJob
from ..errors import InvalidOption
from .engine import PipelineEngine
from .planning import SegmentPlan, options_of_the_run, plan_segments, prepare_segment
from .report import PipelineReport, StageCounter


def pipeline_run_of(
    stages: Sequence[OperationSpec], objects: Iterable[Any], name: str, *, limit: int | None = None
) -> Run[PipelineReport[Any]]:
    """Check everything that can be checked now, and make the run of a pipeline.

    `limit`: that of the Report.

    Raises:
        PoolsaveError: what `prepare_segment` refuses.
    """
    options = options_of_the_run(stages)
    stages = [stages[0].over(objects), *stages[1:]]
    segments = [prepare_segment(segment) for segment in plan_segments(stages)]
    _check_no_shared_executor(segments)
    _share_serial_lock(segments)
    for segment in segments:
        segment.job.capture_context()
        check_job_picklable(segment.executor, segment.job)  # before others have been started
    source = source_of(objects, stages[0].queryset)
    counters = [StageCounter(stage.name, stage.options.workers) for stage in stages]
    report = PipelineReport[Any](counters, keep=options.keep, queryset=stages[0].queryset, limit=limit)
    engine = PipelineEngine(segments, options, source, counters, report._note_unsafe)
    return Run(engine, source, report, options, name=name, aliases=_aliases_of_workers(segments))


def _aliases_of_workers(segments: Sequence[SegmentPlan]) -> tuple[str, ...]:
    outside = [stage for segment in segments if not segment.executor.inline for stage in segment.stages]
    return tuple({alias: None for stage in outside for alias in stage.aliases})


def _check_no_shared_executor(segments: Sequence[SegmentPlan]) -> None:
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
    jobs = [segment.job for segment in segments]
    jobs += [stage for job in jobs if isinstance(job, StagedJob) for stage in job.stages]
    lock = next((job.serial_lock for job in jobs if job.serial_lock is not None), None)
    for job in jobs:
        job.serial_lock = lock if job.serial_lock is not None else None
