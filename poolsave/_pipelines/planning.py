"""The run of a pipeline, as it is put together: which stages share workers, and the options of the whole run.

`Pipeline` and migrations call it. No worker is started here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

from .._db.connections import worker_settings
from .._runs.preflight import check_job_picklable, check_total
from .._runs.preparation import (
    OperationSpec,
    executor_without_processes,
    marks_sessions,
    prepare,
    prepare_early,
    source_of,
)
from .._runs.run import Run
from .._worker.modes.staged import StagedJob
from ..errors import InvalidOption
from ..options import Options, worker_range
from .engine import PipelineEngine
from .report import PipelineReport, StageCounter
from .segment import SegmentPlan

RUN_OPTIONS = ("keep", "max_failures", "on_failure", "throttle", "patience", "progress")
"""Names of the options that belong to the whole run and not to a stage."""
SEGMENT_OPTIONS = (
    "executor", "workers", "start_method", "chunksize", "window", "timeout", "carry", "before_fork", "after_fork",
)  # fmt: skip
"""Names of the options that must be the same for all stages of a segment."""
MAX_STAGES = 16
"""Upper bound on the stages of a segment: a mark of one byte holds the number of the stage, too."""


def pipeline_run_of(
    stages: Sequence[OperationSpec],
    objects: Iterable[Any],
    name: str,
    *,
    total: int | None = None,
    limit: int | None = None,
) -> Run[PipelineReport[Any]]:
    """Check everything that can be checked now, and make the run of a pipeline.

    `total`: how many outcomes progress expects. `limit`: that of the Report.

    Raises:
        PoolsaveError: what `prepare_segment` refuses.
    """
    check_total(total, None if any(stage.expands for stage in stages) else objects)
    options = options_of_the_run(stages)
    stages = [replace(stage, options=stage.options.using(throttle=options.throttle)) for stage in stages]
    stages = [stages[0].over(objects), *stages[1:]]
    for stage in stages:
        if stage.options.key is not None:
            advice = "a pipeline keeps no order of keys; put what needs it into one operation, and map that"
            raise InvalidOption("key", stage.options.key, advice)
        if stage.options.run is not None:
            advice = "a pipeline cannot be durable; put its stages into one operation, and map that"
            raise InvalidOption("run", stage.options.run, advice)
    segments = [prepare_segment(segment) for segment in plan_segments(stages)]
    _check_no_shared_executor(segments)
    _share_serial_lock(segments)
    for segment in segments:
        segment.job.capture_context()
        check_job_picklable(segment.executor, segment.job)  # before others have been started
    source = source_of(objects, stages[0].queryset)
    counters = [StageCounter(stage.name, worker_range(stage.options.workers).least) for stage in stages]
    report = PipelineReport[Any](counters, keep=options.keep, queryset=stages[0].queryset, limit=limit)
    engine = PipelineEngine(segments, options, source, counters, report._note_unsafe)
    return Run(engine, source, report, options, name=name, aliases=partial(_aliases_of_workers, segments), total=total)


def plan_segments(stages: Sequence[OperationSpec]) -> Iterator[list[OperationSpec]]:
    """Part the stages into segments: neighbours with the same options of a worker share workers.

    A stage that gives several values is the last one of its segment, so that the window bounds what follows.
    """
    segment: list[OperationSpec] = []
    for stage in stages:
        if segment and not _goes_with(segment, stage):
            yield segment
            segment = []
        segment.append(stage)
    yield segment


def _goes_with(segment: list[OperationSpec], stage: OperationSpec) -> bool:
    previous = segment[-1]
    if previous.expands or len(segment) == MAX_STAGES:
        return False
    if any(_differ(getattr(previous.options, name), getattr(stage.options, name)) for name in SEGMENT_OPTIONS):
        return False
    # A worker's note of a transaction, by which an outcome after a crash is decided, does not say on which database.
    return len({member.covered for member in (*segment, stage) if member.options.transaction is not None}) <= 1


def _differ(first: Any, second: Any) -> bool:
    return first is not second and (type(first) is not type(second) or first != second)


def prepare_segment(stages: Sequence[OperationSpec]) -> SegmentPlan:
    """Check everything that can be checked before any worker starts.

    `executor="auto"` is decided now, as for a block: a stage has no objects yet to try a pool on.

    Raises:
        PoolsaveError: what `prepare` raises for any of the stages.
    """
    prepared = [prepare_early(stage) for stage in stages]
    if len({type(each.executor) for each in prepared}) > 1:  # with "auto": at least one stage cannot have a pool
        prepared = [prepare(stage, executor_without_processes(stage.options)) for stage in stages]
    executor = prepared[0].executor
    jobs = [each.job for each in prepared]
    if len(jobs) == 1:
        return SegmentPlan(stages, executor, jobs[0])
    covered = {alias for stage in stages for alias in stage.covered}
    marked = marks_sessions(stages[0].options)
    settings = worker_settings(own_transactions=covered, marked=marked) if jobs[0].settings else {}
    return SegmentPlan(stages, executor, StagedJob.of(jobs, [stage.name for stage in stages], settings))


def options_of_the_run(stages: Sequence[OperationSpec]) -> Options:
    """Merge the options of the whole run from its stages, which must not contradict one another.

    Raises:
        InvalidOption: if two stages have different values.
    """
    merged: dict[str, Any] = {}
    declared_by: dict[str, str] = {}
    for stage in stages:
        for name in RUN_OPTIONS:
            if name not in stage.explicit:
                continue
            value = stage.explicit[name]
            if name in merged and _differ(merged[name], value):
                raise InvalidOption(
                    name,
                    value,
                    f"it is one for the whole run, and the stage {stage.name!r} says this where "
                    f"{declared_by[name]!r} says {merged[name]!r}; say it for all by pipeline.using({name}=...)",
                )
            merged[name], declared_by[name] = value, stage.name
    return stages[0].options.using(**merged)


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
