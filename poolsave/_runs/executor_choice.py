"""The executor that a run starts with, and what rules processes out for `executor="auto"`.

Runs, blocks and pipelines call it. Whether a pool is worth its start is decided in `_auto.policy`.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import sys
from dataclasses import replace
from typing import Any

from .._auto.sampling import SamplingSerialExecutor
from .._db.connections import configured_aliases
from .._environment.django_setup import DjangoEnvironment
from .._pickling.values import dumps
from .._reports.batches import OutcomeBatch
from .._reports.trials import Trial
from .._runtime.foreign_exceptions import text_of
from .._worker.job import WorkerJob
from ..errors import InsideTransaction, InvalidOperation, InvalidOption, SharedMemoryDatabase
from ..executors import Executor, SerialExecutor
from ..executors.processes.start_methods import choose_start_method
from ..options import AUTO, Options
from ..reports import Report
from .preflight import check_no_open_transaction, check_reachable
from .preparation import WorkSpec, build_job, check_job_picklable, executor_for, prepare

UNTESTED = "it had to be decided before the first object, and nothing speaks against processes"
SAMPLE_SIZE = 3
"""Objects, and values of theirs, whose pickling is tried before a pool starts."""


def make_pool(work: WorkSpec, options: Options) -> tuple[Executor, WorkerJob]:
    """A pool of processes that has not started, for what `prepare` has checked before."""
    executor = executor_for(options, "process")
    return executor, build_job(work, executor, options, DjangoEnvironment.capture())


def expected_start_method(options: Options) -> str:
    """How processes would be started now, as far as that can be said before there is a pool."""
    return "spawn" if sys.platform == "win32" else choose_start_method(options.start_method)


def why_not_picklable(sample: OutcomeBatch | None) -> str | None:
    """Why objects, or what the function gave for them, cannot go to other processes and back."""
    if sample is None:
        return None
    for item, value in zip(sample.objects[:SAMPLE_SIZE], sample.values, strict=False):
        try:
            pickle.loads(dumps(item))
            pickle.loads(dumps(value))
        except Exception as error:  # whatever the user's own pickling raises
            why = f"{type(error).__name__}: {text_of(error)}"
            return f"an object, or what the function gives for it, cannot be pickled: {why}"
    return None


def why_no_processes(work: WorkSpec, options: Options) -> str | None:
    """Why there can be no pool of processes at present, as far as can be said without trying."""
    if options.workers == 1:
        return "one worker would be no faster than the caller"
    if multiprocessing.current_process().daemon:
        return "this process is daemonic, so it cannot have worker processes of its own"
    if not DjangoEnvironment.has_settings():
        return None
    read = () if work.queryset is None else (work.queryset.db,)
    try:
        aliases = configured_aliases(dict.fromkeys((*options.databases, *read)))
        check_no_open_transaction(aliases)
        check_reachable(aliases, shares_memory=False)
    except InsideTransaction as error:
        return f"the caller is inside a transaction on {error.alias!r}, which no worker could see"
    except SharedMemoryDatabase as error:
        return f"the SQLite database {error.alias!r} is in memory, where no other process reaches it"
    return None


def database_is_out_of_reach_here() -> bool:
    """Whether Django keeps this thread from databases, since an event loop runs in it, as in Jupyter."""
    allowed = os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE")
    return not allowed and asyncio._get_running_loop() is not None and DjangoEnvironment.has_settings()


def executor_without_processes(options: Options) -> Executor:
    """Give the caller's own thread, or other threads if this one cannot reach a database."""
    return executor_for(options, "thread") if database_is_out_of_reach_here() else SerialExecutor()


def prepare_run(work: WorkSpec, options: Options) -> tuple[Executor, WorkerJob, Trial | None]:
    """Check everything, and give the executor and job that a run starts with; a Trial too if "auto" decided for good.

    `executor="auto"` starts in the caller's own thread, if that can reach databases. A `timeout` needs processes.
    """
    if options.executor != AUTO:
        return *prepare(work, options), None
    if options.timeout is not None:
        executor, job = prepare(work, options, executor_for(options, "process"))
        return executor, job, _untested(executor, "only processes can enforce a timeout")
    if database_is_out_of_reach_here():
        return prepare_early(work, options)
    return *prepare(work, options, SamplingSerialExecutor()), None


def prepare_early(work: WorkSpec, options: Options) -> tuple[Executor, WorkerJob, Trial | None]:
    """Do the same for a block or a stage of a pipeline, which have no objects yet to try a pool on.

    "auto" takes processes, if nothing rules them out, else threads or the caller's own thread.
    """
    if options.executor != AUTO or options.timeout is not None:
        return prepare_run(work, options)
    why = why_no_processes(work, options)
    if why is None:
        executor, job = prepare(work, options, executor_for(options, "process"))
        try:
            check_job_picklable(executor, job)
        except (InvalidOperation, InvalidOption) as error:
            why = str(error)
        else:
            return executor, job, _untested(executor, UNTESTED)
    executor, job = prepare(work, options, executor_without_processes(options))
    return executor, job, _untested(executor, why)


def _untested(executor: Executor, why: str) -> Trial:
    name = "serial" if executor.inline else "thread" if executor.shares_memory else "process"
    if not executor.inline and database_is_out_of_reach_here():
        why = f"an event loop runs in the caller's thread, which keeps Django from databases there; {why}"
    return Trial(executor=name, objects=0, seconds=0.0, verdict=why)


def untested_trial(trial: Trial, report: Report[Any]) -> Trial:
    """Complete a Trial for the report of a run that was decided without one."""
    return replace(trial, objects=report.total, seconds=report.elapsed)
