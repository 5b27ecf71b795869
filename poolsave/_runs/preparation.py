"""What a run is to do with each object, the executor that it starts with, and the job that each of its workers gets.

Runs, blocks and pipelines call it before anything starts; what is refused then is in `preflight`. Whether a pool is
worth its start is decided in `_auto.policy`.
"""

from __future__ import annotations

import decimal
import multiprocessing
import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

from django.db.models import QuerySet

from .._auto.sampling import SamplingSerialExecutor
from .._db import connections as _connections
from .._db.connections import configured_aliases
from .._engine.sources import IterableSource, ListSource, RangeSource
from .._environment.django_setup import DjangoEnvironment
from .._environment.warnings import warn
from .._pickling.values import dumps
from .._reports.batches import OutcomeBatch
from .._reports.trials import Trial
from .._runtime.foreign_exceptions import text_of
from .._worker.context import CapturedContext, PickledContext
from .._worker.hooks import Hooks
from .._worker.job import ProcessIdentity, WorkerJob, call_spread, call_with_object
from ..errors import InsideTransaction, InvalidOperation, InvalidOption, SharedMemoryDatabase
from ..executors import Executor, SerialExecutor, create
from ..executors.processes.start_methods import choose_start_method
from ..options import AUTO, Options, worker_range
from .preflight import (
    any_in_memory,
    check_job_picklable,
    check_no_open_transaction,
    check_reachable,
    database_is_out_of_reach_here,
    preflight_checks,
)
from .querysets import QuerySetSource, as_queryset

Call: TypeAlias = Callable[[Callable[..., Any], Mapping[str, Any], Any], Any]
UNTESTED = "it had to be decided before the first object, and nothing speaks against processes"
SAMPLE_SIZE = 3
"""Objects, and values of theirs, whose pickling is tried before a pool starts."""


@dataclass(frozen=True, kw_only=True)
class OperationSpec:
    """One operation: all of a plain run, or one stage of a pipeline."""

    function: Any
    """What workers call. They inherit it, or find it by its name."""
    options: Options
    name: str = ""
    call: Call = call_with_object
    """How an object becomes arguments."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments, which are sent once to every worker."""
    explicit: Mapping[str, Any] = field(default_factory=dict)
    """The options that the operation itself names."""
    expands: bool = False
    """Whether each of its values is a list whose elements go on by themselves in a pipeline."""
    queryset: QuerySet[Any] | None = None
    """Where the objects come from if they are primary keys."""

    def over(self, objects: object) -> OperationSpec:
        """Give the spec for these objects, whose rows workers fetch if they are a queryset."""
        queryset = None if self.call is call_spread else as_queryset(objects)
        return self if queryset is None else replace(self, queryset=queryset)

    @cached_property
    def covered(self) -> tuple[str, ...]:
        """The aliases on which poolsave opens transactions."""
        return self.options.databases if self.options.transaction is not None else ()

    @property
    def needed(self) -> tuple[str, ...]:
        """The databases without which nothing can be done: those of the transactions, and of the queryset."""
        read: Iterable[str] = () if self.queryset is None else (self.queryset.db,)
        return configured_aliases(dict.fromkeys((*self.covered, *read)))

    @property
    def aliases(self) -> tuple[str, ...]:
        """The aliases on which the caller must be inside no transaction while workers run."""
        if not DjangoEnvironment.has_settings():
            return ()
        read: Iterable[str] = () if self.queryset is None else (self.queryset.db,)
        return configured_aliases(dict.fromkeys((*self.options.databases, *read)))


def source_of(objects: Iterable[Any], queryset: QuerySet[Any] | None) -> IterableSource:
    """Make the source of a run: of `queryset`, if there is one, else of `objects`."""
    if queryset is not None:
        return QuerySetSource(queryset)
    if type(objects) in (list, tuple):  # a class of the user's may have an iterator of its own
        return ListSource(objects)
    return RangeSource(objects) if isinstance(objects, range) else IterableSource(objects)


class Prepared(NamedTuple):
    """What a run starts with, after all checks."""

    executor: Executor
    job: WorkerJob
    decided: Trial | None = None
    """What `executor="auto"` means and why, if it is decided without a trial."""


def prepare_run(spec: OperationSpec) -> Prepared:
    """Check everything that can be checked before any worker starts, and give what the run starts with.

    `executor="auto"` starts in the caller's own thread, if that can reach databases. A `timeout` needs processes.

    Raises:
        PoolsaveError: what `preflight_checks` raise.
    """
    if spec.options.executor != AUTO:
        return prepare(spec, executor_for(spec.options))
    if spec.options.timeout is not None:
        why = "only processes can enforce a timeout"
        return _decided(prepare(spec, executor_for(spec.options, "process")), why)
    if database_is_out_of_reach_here() or spec.options.key is not None or spec.options.run is not None:
        return prepare_early(spec)
    return prepare(spec, SamplingSerialExecutor())


def prepare_early(spec: OperationSpec) -> Prepared:
    """Do the same for a block or a stage of a pipeline, which have no objects yet to try a pool on.

    "auto" takes processes, if nothing rules them out, else threads or the caller's own thread.
    """
    if spec.options.executor != AUTO or spec.options.timeout is not None:
        return prepare_run(spec)
    why = why_no_processes(spec)
    if why is None:
        prepared = prepare(spec, executor_for(spec.options, "process"))
        try:
            check_job_picklable(prepared.executor, prepared.job)
        except (InvalidOperation, InvalidOption) as error:
            why = str(error)
        else:
            return _decided(prepared, UNTESTED)
    return _decided(prepare(spec, executor_without_processes(spec.options)), why)


def prepare(spec: OperationSpec, executor: Executor) -> Prepared:
    """Do the same with this executor."""
    for check in preflight_checks(spec, executor):
        check()
    return Prepared(executor, build_job(spec, executor))


def _decided(prepared: Prepared, why: str) -> Prepared:
    executor = prepared.executor
    name = "serial" if executor.inline else "thread" if executor.shares_memory else "process"
    if not executor.inline and database_is_out_of_reach_here():
        why = f"an event loop runs in the caller's thread, which keeps Django from databases there; {why}"
    return prepared._replace(decided=Trial(executor=name, objects=0, seconds=0.0, verdict=why))


def executor_for(options: Options, executor: Any = None) -> Executor:
    """Make the executor of a run, which is not started: `executor`, or that of the options."""
    executor = executor or options.executor
    if executor in ("process", "process-pool") and multiprocessing.current_process().daemon:
        warn(
            "this process is daemonic (a worker of a pool), so it cannot have worker processes of its own: "
            f'using executor="thread" instead of {executor!r}'
        )
        executor = "thread"
    return create(executor, start_method=options.start_method)


def build_job(spec: OperationSpec, executor: Executor) -> WorkerJob:
    """Make the job that each worker gets."""
    options = spec.options
    # Inline executors need no environment: they run in the caller's.
    environment = None if executor.inline else DjangoEnvironment.capture()
    # Processes are refused such databases.
    in_turn = environment is not None and executor.shares_memory and any_in_memory(spec.aliases)
    return WorkerJob(
        function=spec.function,
        queryset=spec.queryset,
        call=spec.call,
        constants=spec.constants,
        transaction=options.transaction,
        databases=options.databases,
        retries=options.retries,
        timeout=options.timeout,
        noted=environment is not None and _is_noted(options),
        batch_writes=options.batch_writes,
        inline=executor.inline,
        crosses=not executor.shares_memory,
        environment=environment,
        caller=None if executor.inline else ProcessIdentity.here(),
        decimal_context=None if executor.inline else decimal.getcontext().copy(),
        settings={}
        if environment is None
        else _connections.worker_settings(own_transactions=spec.covered, marked=marks_sessions(options)),
        callers=_connections.wrappers_of_thread() if environment is not None and executor.shares_memory else (),
        serial_lock=threading.Lock() if in_turn else None,
        context=CapturedContext(options.carry) if options.carry else None,
        hooks=Hooks(options.before_fork, options.after_fork) if options.before_fork or options.after_fork else None,
        counts_cpu=not executor.inline and worker_range(options.workers).is_open,
    )


def marks_sessions(options: Options) -> bool:
    """Whether a throttle has to tell the sessions of the workers from others."""
    return any(getattr(throttle, "_marks_sessions", False) for throttle in options.throttle)


def _is_noted(options: Options) -> bool:
    if options.transaction is None or len(options.databases) != 1:
        return False
    return options.transaction == "chunk" if options.resolve_lost is None else options.resolve_lost


def why_no_processes(spec: OperationSpec) -> str | None:
    """Why there can be no pool of processes at present, as far as can be said without trying."""
    if worker_range(spec.options.workers).most == 1:
        return "one worker would be no faster than the caller"
    if multiprocessing.current_process().daemon:
        return "this process is daemonic, so it cannot have worker processes of its own"
    aliases = spec.aliases
    try:
        check_no_open_transaction(aliases)
        check_reachable(aliases, shares_memory=False)
    except InsideTransaction as error:
        return f"the caller is inside a transaction on {error.alias!r}, which no worker could see"
    except SharedMemoryDatabase as error:
        return f"the SQLite database {error.alias!r} is in memory, where no other process reaches it"
    return None


def executor_without_processes(options: Options) -> Executor:
    """Give the caller's own thread, or other threads if this one cannot reach a database."""
    return executor_for(options, "thread") if database_is_out_of_reach_here() else SerialExecutor()


class ProcessPools:
    """The pools of processes that a run with `executor="auto"` may switch to, after the checks of `prepare_run`."""

    def __init__(self, spec: OperationSpec, context: CapturedContext | PickledContext | None) -> None:
        self._spec = spec
        self._context = context

    def start_method(self) -> str:
        """How processes would be started now, as far as that can be said before there is a pool."""
        return "spawn" if sys.platform == "win32" else choose_start_method(self._spec.options.start_method)

    def obstacle(self, sample: OutcomeBatch | None) -> str | None:
        """Why there can be no pool now, or none for such objects and what the function gave for them."""
        return why_no_processes(self._spec) or _why_not_picklable(sample)

    def make(self) -> tuple[Executor, WorkerJob]:
        """Make a pool, which is not started, and its job."""
        executor = executor_for(self._spec.options, "process")
        return executor, replace(build_job(self._spec, executor), context=self._context)


def _why_not_picklable(sample: OutcomeBatch | None) -> str | None:
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
