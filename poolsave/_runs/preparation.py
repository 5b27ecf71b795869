"""The checks before anything starts, in their order, and the job that each worker gets.

Runs, blocks and pipelines call `prepare`; `check()` calls the checks one by one. The checks of databases themselves are
in `preflight`.
"""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from django.db.models import QuerySet

from .._db import connections as _connections
from .._environment.django_setup import DjangoEnvironment
from .._environment.warnings import warn
from .._worker.context import CapturedContext
from .._worker.hooks import Hooks
from .._worker.job import WorkerJob
from ..errors import InvalidOption
from ..executors import Executor, ProcessExecutor, create
from ..options import Options
from .preflight import any_in_memory, check_aliases_exist, check_no_open_transaction, check_reachable
from .querysets import check_queryset

Call: TypeAlias = Callable[[Callable[..., Any], Mapping[str, Any], Any], Any]


class WorkSpec(NamedTuple):
    """What is done with every object."""

    function: Any
    call: Call
    constants: Mapping[str, Any]
    queryset: QuerySet[Any] | None = None
    """Where the objects come from if they are primary keys."""


def prepare(work: WorkSpec, options: Options, executor: Executor | None = None) -> tuple[Executor, WorkerJob]:
    """Check everything that can be checked before any worker starts, and give the executor and its job.

    Without `executor` it is that of the options.

    Raises:
        InvalidOption: if an alias does not exist, or the executor cannot enforce a timeout.
        InvalidOperation: if a queryset cannot be fetched range by range.
        InsideTransaction: if a covered alias is inside a transaction.
        SharedMemoryDatabase: if a covered alias is SQLite in memory and the workers would not see it.
    """
    executor = executor or executor_for(options)
    # Inline executors need no environment: they run in the caller's.
    surroundings = None if executor.inline else DjangoEnvironment.capture()
    for check in preflight_checks(work, executor, options, surroundings):
        check()
    return executor, build_job(work, executor, options, surroundings)


def check_job_picklable(executor: Executor, job: WorkerJob) -> None:
    """Refuse now what the start of the workers would refuse: without a fork the job must be picklable.

    Raises:
        InvalidOperation: naming the function.
        InvalidOption: naming what is carried.
    """
    if not (executor.shares_memory or is_forked(executor, job)):
        pickle.dumps(job, pickle.HIGHEST_PROTOCOL)


def is_forked(executor: Executor, job: WorkerJob) -> bool:
    """Whether workers would be forks of this process now, so that they inherit the job."""
    return isinstance(executor, ProcessExecutor) and executor.method_for(job) == "fork"


def executor_for(options: Options, executor: Any = None) -> Executor:
    """Make the executor of a run, which is not started: `executor`, or that of the options."""
    return create(_threads_if_daemonic(executor or options.executor), start_method=options.start_method)


def preflight_checks(
    work: WorkSpec, executor: Executor, options: Options, surroundings: DjangoEnvironment | None
) -> Iterator[Callable[[], None]]:
    """Give the checks in their order. Each raises what it refuses."""
    aliases = _all_aliases(work, options) if surroundings is not None else ()
    if work.queryset is not None:
        transaction, databases = options.transaction, options.databases
        yield partial(check_queryset, work.queryset, transaction=transaction, databases=databases)
    yield partial(check_aliases_exist, _covered(options))
    if not executor.inline:
        yield partial(check_no_open_transaction, aliases)  # first: its advice is the one that tests need
        yield partial(check_reachable, aliases, shares_memory=executor.shares_memory)
    yield partial(_check_timeout, executor, options.timeout)


def aliases_of_caller(work: WorkSpec, options: Options) -> tuple[str, ...]:
    """Give the aliases on which the caller must be inside no transaction while workers run."""
    return _all_aliases(work, options) if DjangoEnvironment.has_settings() else ()


def _covered(options: Options) -> tuple[str, ...]:
    return options.databases if options.transaction is not None else ()


def _all_aliases(work: WorkSpec, options: Options) -> tuple[str, ...]:
    read = () if work.queryset is None or work.queryset.db in options.databases else (work.queryset.db,)
    return _connections.configured_aliases((*options.databases, *read))


def _check_timeout(executor: Executor, timeout: float | None) -> None:
    if timeout is not None and not executor.enforces_timeout:
        raise InvalidOption(
            "timeout",
            timeout,
            f"{type(executor).__name__} cannot end an object from outside, "
            'use executor="process", or a time-out of the database or of the client that waits',
        )


def build_job(
    work: WorkSpec, executor: Executor, options: Options, surroundings: DjangoEnvironment | None
) -> WorkerJob:
    """Make the job that each worker gets."""
    separate = surroundings is not None and not executor.inline
    in_turn = separate and any_in_memory(_all_aliases(work, options))
    if separate and executor.shares_memory:
        _connections.keep_from_other_threads()
    return WorkerJob(
        function=work.function,
        queryset=work.queryset,
        call=work.call,
        constants=work.constants,
        transaction=options.transaction,
        databases=options.databases,
        retries=options.retries,
        timeout=options.timeout,
        noted=_is_noted(options) and separate,
        inline=executor.inline,
        crosses=not executor.shares_memory,
        environment=surroundings,
        settings=_connections.worker_settings(own_transactions=_covered(options)) if separate else {},
        serial_lock=threading.Lock() if in_turn else None,
        context=CapturedContext(options.carry) if options.carry else None,
        hooks=Hooks(options.before_fork, options.after_fork),
    )


def _is_noted(options: Options) -> bool:
    if options.transaction is None or len(options.databases) != 1:
        return False
    return options.transaction == "chunk" if options.resolve_lost is None else options.resolve_lost


def _threads_if_daemonic(executor: Any) -> Any:
    if executor in ("process", "process-pool") and multiprocessing.current_process().daemon:
        warn(
            "this process is daemonic (a worker of a pool), so it cannot have worker processes of its own: "
            f'using executor="thread" instead of {executor!r}'
        )
        return "thread"
    return executor
