"""The stages of a pipeline, which of them one worker runs, and where the options of the whole run come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .._db.connections import worker_settings
from .._runs.executor_choice import executor_without_processes, prepare_early
from .._runs.preparation import WorkSpec, prepare
from .._worker.job import WorkerJob
from .._worker.staged import StagedJob
from ..errors import InvalidOption
from ..executors import Executor
from ..options import Options

RUN_OPTIONS = ("keep", "max_failures", "on_failure", "progress")
"""Options of a whole run, which no stage can have for itself."""
SEGMENT_OPTIONS = (
    "executor", "workers", "start_method", "chunksize", "window", "timeout", "carry", "before_fork", "after_fork",
)  # fmt: skip
"""Options that are one for all stages that a worker runs."""
MAX_STAGES = 16
"""Stages in a hop, whose number has to go into a mark of one byte."""


class Stage(NamedTuple):
    """One operation of a pipeline."""

    name: str
    work: WorkSpec
    options: Options
    explicit: Mapping[str, Any]
    expands: bool
    """Whether each of its values is a list whose elements go on by themselves."""


class SegmentPlan(NamedTuple):
    """Stages side by side that run in the same workers."""

    stages: Sequence[Stage]
    executor: Executor
    job: WorkerJob


def plan_segments(stages: Sequence[Stage]) -> Iterator[list[Stage]]:
    """Part the stages into hops: neighbours with the same executor set-up are run by the same workers.

    A stage that gives several values is the last one of its hop: what becomes of them is fed by the window.
    """
    hop: list[Stage] = []
    for stage in stages:
        if hop and not _goes_with(hop, stage):
            yield hop
            hop = []
        hop.append(stage)
    yield hop


def _goes_with(hop: list[Stage], stage: Stage) -> bool:
    before = hop[-1]
    if before.expands or len(hop) == MAX_STAGES:
        return False
    if any(_differ(getattr(before.options, name), getattr(stage.options, name)) for name in SEGMENT_OPTIONS):
        return False
    # A worker's note of a transaction, which settles what a crash left open, does not say on which database it was.
    return len({one.options.databases for one in (*hop, stage) if one.options.transaction is not None}) <= 1


def _differ(one: Any, other: Any) -> bool:
    return one is not other and (type(one) is not type(other) or one != other)


def prepare_segment(stages: Sequence[Stage]) -> SegmentPlan:
    """Check everything that can be checked before any worker starts. `executor="auto"` is decided now, as for a block,
    since what comes to a stage is not there yet to be tried.

    Raises:
        PoolsaveError: what `prepare` raises for any of the stages.
    """
    prepared = [prepare_early(stage.work, stage.options)[:2] for stage in stages]
    if len({type(executor) for executor, _job in prepared}) > 1:  # with "auto", for one of them there is no pool
        prepared = [prepare(stage.work, stage.options, executor_without_processes(stage.options)) for stage in stages]
    executor = prepared[0][0]
    jobs = [job for _executor, job in prepared]
    if len(jobs) == 1:
        return SegmentPlan(stages, executor, jobs[0])
    covered = {alias for one in stages if one.options.transaction is not None for alias in one.options.databases}
    settings = worker_settings(own_transactions=covered) if jobs[0].settings else {}
    return SegmentPlan(stages, executor, StagedJob.of(jobs, [stage.name for stage in stages], settings))


def options_of_the_run(stages: Sequence[Stage]) -> Options:
    """The options of the whole run: what its stages say, which must not contradict one another.

    Raises:
        InvalidOption: if two stages say different things.
    """
    found: dict[str, Any] = {}
    by: dict[str, str] = {}
    for stage in stages:
        for name in RUN_OPTIONS:
            if name not in stage.explicit:
                continue
            value = stage.explicit[name]
            if name in found and _differ(found[name], value):
                raise InvalidOption(
                    name,
                    value,
                    f"it is one for the whole run, and the stage {stage.name!r} says this where {by[name]!r} says "
                    f"{found[name]!r}; say it for all by pipeline.using({name}=...)",
                )
            found[name], by[name] = value, stage.name
    return stages[0].options.using(**found)
