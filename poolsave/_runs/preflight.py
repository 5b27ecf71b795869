"""What is refused in the caller before any worker starts.

`preflight_checks` lists the checks in their order: `prepare` makes them before a run, and `check()` reports what they
raise. The others are made while a run goes on, or before its workers start.
"""

from __future__ import annotations

import asyncio
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, router
from django.db.models import QuerySet
from django.db.models.base import ModelState

from .._db.connections import (
    DUMMY_ENGINE,
    check_folder_exists,
    outside_event_loop,
    worker_settings,
    wrappers_of_waiting_thread,
)
from .._db.inspection import check_can_connect
from .._environment.django_setup import DjangoEnvironment
from .._environment.warnings import warn
from .._worker.job import WorkerJob
from ..errors import InsideTransaction, InvalidOperation, InvalidOption, SharedMemoryDatabase
from ..executors import DaskExecutor, Executor, ProcessExecutor
from ..executors.processes.start_methods import check_script_can_be_imported
from ..options import Options
from .querysets import as_queryset

if TYPE_CHECKING:
    from .preparation import OperationSpec


def preflight_checks(spec: OperationSpec, executor: Executor) -> Iterator[Callable[[], None]]:
    """Give the checks in their order. Each raises what it refuses.

    Raises:
        InvalidOption: if an alias does not exist or cannot batch writes, or the executor cannot enforce a timeout.
        InvalidOperation: if a queryset cannot be fetched range by range, Django is not set up, or the caller's
            thread is that of an event loop and has to reach a database.
        InsideTransaction: if a covered alias is inside a transaction.
        SharedMemoryDatabase: if a covered alias is SQLite in memory and the workers would not see it.
        DatabaseUnreachable: if no connection is to be had, and the caller has none.
    """
    if spec.queryset is not None:
        yield partial(check_queryset, spec.queryset, spec.options)
    yield partial(check_aliases_exist, spec.covered)
    if spec.covered:
        yield check_django_is_set_up
        if executor.inline:
            yield check_no_event_loop
    if spec.options.batch_writes:
        yield partial(check_can_batch, spec.covered)
    if not executor.inline:
        aliases = spec.aliases
        yield partial(check_no_open_transaction, aliases)  # first: its advice is the one that tests need
        yield partial(check_no_transaction_around_loop, aliases)
        yield partial(check_reachable, aliases, shares_memory=executor.shares_memory)
    yield from _checks_of_options(spec, executor)
    if not isinstance(executor, DaskExecutor):  # its workers may reach what this machine does not
        yield partial(check_databases_answer, spec.needed)


def check_databases_answer(aliases: Iterable[str]) -> None:
    """Connect to each server once, and look for the folder of each file, unless the caller has a connection.

    None is left open.

    Raises:
        DatabaseUnreachable: naming the alias.
    """
    for alias in aliases:
        connection: Any = connections[alias]
        if connection.connection is not None or any(outer.connection for outer in _connections_of_caller(alias)):
            continue
        if connection.vendor == "sqlite":
            check_folder_exists(alias, connection.settings_dict)
        else:
            check_can_connect(alias, worker_settings(own_transactions=())[alias])


def check_key(spec: OperationSpec, _executor: Executor | None = None) -> None:
    """Refuse the option `key` where nothing could keep the order.

    Raises:
        InvalidOption: saying what to do.
    """
    if spec.options.key is None:
        return
    if spec.queryset is not None:
        way_out = "the caller reads primary keys only; map queryset.iterator(), whose rows it reads and sends"
    elif spec.function is None:
        way_out = "a block starts its calls as they come; use map() or stream() of an operation"
    else:
        return
    raise InvalidOption("key", spec.options.key, way_out)


def check_run(spec: OperationSpec, _executor: Executor) -> None:
    """Refuse a durable run where there is no input that could go on.

    Raises:
        InvalidOption: saying what to do.
    """
    if spec.function is None:
        raise InvalidOption("run", spec.options.run, "a block cannot be durable; use map() of an operation")
    if spec.options.key is not None:
        raise InvalidOption("key", spec.options.key, "a durable run keeps no order of keys; leave one of both out")


def check_throttles(spec: OperationSpec, _executor: Executor) -> None:
    """Refuse throttles that would look at a database that is not there, or has no server.

    Raises:
        InvalidOption: naming the alias.
    """
    for throttle in spec.options.throttle:
        check = getattr(throttle, "_check", None)
        if check is not None:
            check(spec.options.databases)


def check_timeout(spec: OperationSpec, executor: Executor) -> None:
    """Refuse a timeout that the executor cannot enforce.

    Raises:
        InvalidOption: naming executors that can.
    """
    if not executor.enforces_timeout:
        raise InvalidOption(
            "timeout",
            spec.options.timeout,
            f"{type(executor).__name__} cannot end an object from outside, "
            'use executor="process", or a time-out of the database or of the client that waits',
        )


CHECKS_OF_OPTIONS: tuple[tuple[str, Callable[[OperationSpec, Executor], None]], ...] = (
    ("throttle", check_throttles),
    ("timeout", check_timeout),
    ("key", check_key),
    ("run", check_run),
)
"""What is refused of options that have a value."""


def _checks_of_options(spec: OperationSpec, executor: Executor) -> list[Callable[[], None]]:
    given = [check for name, check in CHECKS_OF_OPTIONS if getattr(spec.options, name) is not None]
    return [partial(check, spec, executor) for check in given]


def check_job_picklable(executor: Executor, job: WorkerJob) -> None:
    """Refuse now what the start of the workers would refuse: without a fork the job must be picklable.

    Raises:
        InvalidOperation: naming the function.
        InvalidOption: naming what is carried.
    """
    if not (executor.shares_memory or is_forked(executor, job)):
        if isinstance(executor, ProcessExecutor):
            check_script_can_be_imported()
        pickle.dumps(job, pickle.HIGHEST_PROTOCOL)


def is_forked(executor: Executor, job: WorkerJob) -> bool:
    """Whether workers would be forks of this process now, so that they inherit the job."""
    return isinstance(executor, ProcessExecutor) and executor.method_for(job) == "fork"


def check_aliases_exist(aliases: Iterable[str]) -> None:
    """Refuse aliases that settings.DATABASES does not have.

    Raises:
        InvalidOption: naming the alias.
        ImproperlyConfigured: if there is no database at all.
    """
    for alias in aliases:
        if alias not in connections.settings:
            known = ", ".join(map(repr, connections.settings))
            raise InvalidOption("databases", alias, f"settings.DATABASES has only {known}")
        if connections.settings[alias]["ENGINE"] == DUMMY_ENGINE:
            raise ImproperlyConfigured(
                f"settings.DATABASES has no {alias!r} database for a transaction per object: "
                "configure it, or set transaction=None for functions that need no database"
            )


def check_django_is_set_up() -> None:
    """Refuse to save while no model can be used.

    Raises:
        InvalidOperation: saying what to do.
    """
    if not apps.models_ready:
        raise InvalidOperation(
            "Django's apps are not loaded yet, so no object could be saved: call django.setup() at the top of the "
            "script, before models are imported, and start no run while a module of models is imported"
        )


def check_no_event_loop() -> None:
    """Refuse to save in a thread in which Django refuses each query.

    Raises:
        InvalidOperation: naming the ways out.
    """
    if database_is_out_of_reach_here():
        raise InvalidOperation(
            "an event loop runs in this thread, where Django lets nothing reach a database, so every object of a run "
            'with executor="serial" would fail: use executor="process" or "thread", or call it by '
            "asgiref.sync.sync_to_async"
        )


def database_is_out_of_reach_here() -> bool:
    """Whether Django keeps this thread from databases, since an event loop runs in it, as in Jupyter."""
    if asyncio._get_running_loop() is None:
        return False
    return not os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE") and DjangoEnvironment.has_settings()


def check_can_batch(aliases: Iterable[str]) -> None:
    """Refuse `batch_writes` for databases in which no rows can be held back safely.

    Raises:
        InvalidOption: naming the alias.
    """
    for alias in aliases:
        connection: Any = connections[alias]
        if connection.vendor != "postgresql":
            raise InvalidOption(
                "batch_writes", True, f"{alias!r} is {connection.display_name}, and only PostgreSQL can: leave it out"
            )


def check_no_open_transaction(aliases: Iterable[str]) -> None:
    """Refuse to go on while the caller is inside a transaction on one of the aliases.

    Raises:
        InsideTransaction: naming the alias and what to do.
    """
    for alias in aliases:
        for connection in _connections_of_caller(alias):
            if connection.in_atomic_block:
                raise InsideTransaction(alias)
            if connection.connection is not None and not connection.autocommit:
                raise InsideTransaction(alias, AUTOCOMMIT_IS_OFF)


def check_no_transaction_around_loop(aliases: Iterable[str]) -> None:
    """Refuse a transaction around `async_to_sync()`, whose coroutine runs in another thread, with other connections.

    Raises:
        InsideTransaction: naming the alias and what to do.
    """
    for connection in wrappers_of_waiting_thread():
        if connection.in_atomic_block and connection.alias in aliases:
            raise InsideTransaction(connection.alias)


AUTOCOMMIT_IS_OFF = (
    "its autocommit is off, so each query, also one that reads, begins a transaction: call transaction.commit() or "
    'rollback() before the pool, or turn autocommit on; executor="serial" stays inside the transaction'
)


def check_in_no_block(aliases: Iterable[str], advice: str | None = None) -> None:
    """Refuse to go on while the caller is inside atomic() on one of the aliases.

    A transaction without atomic() is let pass: with AUTOCOMMIT off every read opens one, which holds no locks.

    Raises:
        InsideTransaction: naming the alias and what to do.
    """
    for alias in aliases:
        if _is_in_block(alias):
            raise InsideTransaction(alias, advice)


HELD_BY_INPUT = (
    "the input has opened it and holds it while workers run; let it read inside atomic() and yield outside of it, or "
    'lock in the function, or use executor="serial"'
)


def is_in_block(aliases: Iterable[str]) -> bool:
    """Whether the caller is inside atomic() on one of the aliases."""
    return any(map(_is_in_block, aliases))


def _is_in_block(alias: str) -> bool:
    return any(connection.in_atomic_block for connection in _connections_of_caller(alias))


def _connections_of_caller(alias: str) -> tuple[Any, ...]:
    if asyncio._get_running_loop() is None:
        return (connections[alias],)
    with outside_event_loop():  # a transaction around asyncio.run() counts, too
        outer = connections[alias]
    return connections[alias], outer


def check_reachable(aliases: Iterable[str], *, shares_memory: bool) -> None:
    """Refuse in-memory SQLite databases that the workers would not see.

    Raises:
        SharedMemoryDatabase: naming the alias and the executors that work.
    """
    for alias in aliases:
        name = str(connections[alias].settings_dict["NAME"])
        if not _in_memory(alias):
            continue
        shared_cache = name != ":memory:"
        if not shares_memory or not shared_cache:
            ways_out = 'executor="thread" or executor="serial"' if shared_cache else 'executor="serial"'
            raise SharedMemoryDatabase(alias, name, ways_out)


def any_in_memory(aliases: Iterable[str]) -> bool:
    """Whether an alias is SQLite in memory, where threads must take turns.

    SQLite answers SQLITE_LOCKED at once there, whatever the time-out.
    """
    return any(_in_memory(alias) for alias in aliases)


def _in_memory(alias: str) -> bool:
    connection: Any = connections[alias]
    return connection.vendor == "sqlite" and bool(connection.is_in_memory_db())


def check_total(total: object, objects: Any) -> None:
    """Refuse a number of objects that is none, or not that of a list.

    The number of a queryset is not asked for: to know it costs a query, which a given one spares.

    Raises:
        InvalidOption: naming the number, and the right one.
    """
    if total is None:
        return
    if not isinstance(total, int) or isinstance(total, bool) or total < 0:
        raise InvalidOption("total", total, "give a whole number from 0, or None")
    length = total
    if isinstance(objects, Sized) and as_queryset(objects) is None:
        with suppress(OverflowError):  # a range longer than any list can be
            length = len(objects)
    if length != total:
        raise InvalidOption("total", total, f"there are {length} objects; leave it out, or give it for a generator")


def check_queryset(queryset: QuerySet[Any], options: Options) -> None:
    """Refuse querysets whose rows cannot be fetched range by range, and warn of what may be a mistake.

    Raises:
        InvalidOperation: saying what to use instead.
    """
    transaction, databases = options.transaction, options.databases
    for unsuitable, what, way_out in (
        (queryset.query.combinator, "a union(), intersection() or difference()", _BY_KEYS),
        (queryset.query.is_sliced, "a sliced queryset", _BY_KEYS),
        (vars(queryset)["_fields"] is not None, "values(), values_list() or dates()", _BY_INSTANCE),
        (_has_window_function(queryset), "a queryset with a window function", _BY_KEYS),
        (queryset.query.distinct_fields, "distinct() on fields", _BY_KEYS),
        (queryset.query.select_for_update and transaction != "chunk", "select_for_update()", _IN_CHUNK),
    ):
        if unsuitable:
            raise InvalidOperation(f"{what} cannot be mapped over a pool range by range: {way_out}")
    if not _is_ordered_by_key(queryset):
        warn("the ordering of this queryset is ignored: a pool takes rows in the order of their primary keys")
    alias = _saved_on(queryset)
    if transaction is not None and not {alias, queryset.db} & {*databases}:
        warn(
            f"rows of {queryset.model._meta.label} would be saved on {alias!r}, which databases={databases!r} "
            "does not cover: what is written there stays, also if its object fails"
        )


_BY_KEYS = (
    "select the same rows by their keys, for example\n\n"
    '    keys = list(queryset.values_list("pk", flat=True))\n'
    "    operation.map(Model.objects.filter(pk__in=keys))"
)
_BY_INSTANCE = (
    "map the queryset of instances (with only() for some columns), or pass queryset.iterator() to have the caller read "
    "the values and send them"
)
_IN_CHUNK = (
    "the rows would be fetched outside of the transaction of their object; lock inside the function, or use "
    'transaction="chunk", where the rows are fetched in the transaction of their chunk'
)


def _saved_on(queryset: QuerySet[Any]) -> str:
    model: Any = queryset.model
    row = model.__new__(model)
    row._state = ModelState()
    row._state.db = queryset.db
    alias: str = router.db_for_write(queryset.model, instance=row)
    return alias


def _has_window_function(queryset: QuerySet[Any]) -> bool:
    # Over a range of rows a window function sees another window.
    return any(annotation.contains_over_clause for annotation in queryset.query.annotations.values())


def _is_ordered_by_key(queryset: QuerySet[Any]) -> bool:
    ordering = (*queryset.query.order_by, *queryset.query.extra_order_by)
    return ordering in ((), ("pk",), (queryset.model._meta.pk.name,)) and queryset.query.standard_ordering
