"""Planning of a pipeline: which stages share workers, and the options of the whole run.

`_pipelines.run` and `Pipeline` call it before anything starts. No worker is started here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from .._db.connections import worker_settings
from .._runs.operation_spec import OperationSpec
from .._runs.preparation import executor_without_processes, prepare, prepare_early
from .._worker.job import WorkerJob
from .._worker.staged import StagedJob
from ..errors import InvalidOption
from ..executors import Executor
from ..options import Options

RUN_OPTIONS = ("keep", "max_failures", "on_failure", "progress")
"""Names of the options that belong to the whole run and not to a stage."""
SEGMENT_OPTIONS = (
    "executor", "workers", "start_method", "chunksize", "window", "timeout", "carry", "before_fork", "after_fork",
)  # fmt: skip
"""Names of the options that must be the same for all stages of a segment."""
MAX_STAGES = 16
"""Upper bound on the stages of a segment: a mark of one byte holds the number of the stage, too."""


class SegmentPlan(NamedTuple):
    """Stages side by side that run in the same workers, with their executor and job."""

    stages: Sequence[OperationSpec]
    executor: Executor
    job: WorkerJob


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
    settings = worker_settings(own_transactions=covered) if jobs[0].settings else {}
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
