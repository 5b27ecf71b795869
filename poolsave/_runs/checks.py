"""What would go wrong or be slow, as messages of Django's system checks, before anything runs.

Errors are what `map` would refuse; the same code finds them. Warnings are hazards. `check()` of operations and
pipelines calls this module, and `manage.py check` does.
"""

from __future__ import annotations

import pickle
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from django.conf import settings
from django.core.checks import ERROR, CheckMessage, Error, Info
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from .._db import connections as _connections
from .._db.fork_safety import check_no_open_sqlite_transaction
from .._db.inspection import DatabaseInfo, aliases_per_server, inspect_database
from .._environment.project_settings import operating_settings
from .._runtime.foreign_exceptions import text_of
from .._worker.job import WorkerJob
from ..errors import (
    DatabaseUnreachable,
    InsideTransaction,
    InvalidOperation,
    InvalidOption,
    PoolsaveError,
    SharedMemoryDatabase,
)
from ..executors import Executor, ProcessExecutor
from ..options import AUTO, Options, worker_range, wrong_settings
from .preflight import check_aliases_exist, check_job_picklable, database_is_out_of_reach_here, preflight_checks
from .preparation import (
    OperationSpec,
    build_job,
    executor_for,
    executor_without_processes,
    why_no_processes,
)

SAMPLE_SIZE = 3
"""Objects of a list whose pickling is tried: enough to find a class that cannot be pickled, at little cost."""
IDS = (
    (InvalidOption, "poolsave.E001"),
    (InvalidOperation, "poolsave.E002"),
    (InsideTransaction, "poolsave.E003"),
    (SharedMemoryDatabase, "poolsave.E004"),
    (ImproperlyConfigured, "poolsave.E005"),
    (DatabaseUnreachable, "poolsave.E006"),
)


def check_operation(spec: OperationSpec, objects: Iterable[Any] | None, name: str) -> list[CheckMessage]:
    """Give all that can be said of a run without running it."""
    options = spec.options
    if options.executor == AUTO:
        return _check_auto(spec, objects, name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            executor = executor_for(options)
        except InvalidOption as error:  # it has no address, or is not installed
            return [as_check_error(error)]
        messages = _errors_of(preflight_checks(spec, executor))
    messages += [CheckWarning(str(warning.message), id="poolsave.W001") for warning in caught]
    job = build_job(spec, executor)
    messages += _check_start(executor, job, options)
    if not executor.shares_memory:
        messages += _check_objects(objects)
    if job.environment is not None:
        messages += _check_databases(options.databases, job.settings, options)
    messages += _check_debug()
    if any(message.id == "poolsave.E006" for message in messages):
        messages = [message for message in messages if message.id != "poolsave.W004"]  # the same again
    for message in messages:
        message.obj = name
    return list({_identity(message): message for message in messages}.values())


def _check_auto(spec: OperationSpec, objects: Iterable[Any] | None, name: str) -> list[CheckMessage]:
    """Check `executor="auto"`. What rules processes out is no error, unless a `timeout` needs them."""
    options = spec.options
    pooled = check_operation(replace(spec, options=options.using(executor="process")), objects, name)
    if options.timeout is not None:
        return pooled
    here = options.using(executor=executor_without_processes(options))
    local = check_operation(replace(spec, options=here), objects, name)
    why = why_no_processes(spec)
    known = {_identity(message) for message in local}
    lasting = [message for message in pooled if _identity(message) in known or (message.level < ERROR and why is None)]
    reasons = [why] if why else [message.msg for message in pooled if message.level >= ERROR and message not in lasting]
    where = "go to threads" if database_is_out_of_reach_here() else "stay in the caller's thread"
    notes = [Info(f"the run would {where}: {reason}", id="poolsave.I002") for reason in reasons]
    for message in notes:
        message.obj = name
    return [*lasting, *notes]


def _identity(message: CheckMessage) -> tuple[Any, ...]:
    return message.id, message.msg


def as_check_error(error: Exception) -> CheckMessage:
    """Give an error that `map` would raise as a message. Its text says what to do, too."""
    return Error(str(error), id=next(known for kind, known in IDS if isinstance(error, kind)))


def _errors_of(guards: Iterable[Callable[[], object]]) -> list[CheckMessage]:
    errors = []
    for guard in guards:
        try:
            guard()
        except (PoolsaveError, ImproperlyConfigured) as error:
            errors.append(as_check_error(error))
    return errors


def _check_start(executor: Executor, job: WorkerJob, options: Options) -> Iterator[CheckMessage]:
    if executor.shares_memory:
        return
    method = executor.method_for(job) if isinstance(executor, ProcessExecutor) else "its own"
    if method != "fork":
        yield from _errors_of([partial(check_job_picklable, executor, job)])
    else:
        yield from _errors_of([check_no_open_sqlite_transaction])
    others = sorted(thread.name for thread in threading.enumerate() if thread is not threading.current_thread())
    if others and method == "fork":
        yield CheckWarning(
            f"workers would be forked while other threads are alive ({', '.join(others)}), whose locks stay held in "
            "them for ever",
            hint='End the threads before, by before_fork if need be, or use start_method="forkserver".',
            id="poolsave.W002",
        )
    elif others and options.start_method is None and isinstance(executor, ProcessExecutor):
        yield Info(
            f"workers would be started by {method} and not by a fork, which is not safe while other threads are alive "
            f"({', '.join(others)})",
            hint="Functions and objects have to be picklable. End the threads by before_fork to have workers forked.",
            id="poolsave.I001",
        )


def _check_objects(objects: Iterable[Any] | None) -> Iterator[CheckMessage]:
    # Looking into anything else would consume it, or query the database.
    for index, item in enumerate(objects[:SAMPLE_SIZE] if isinstance(objects, list | tuple) else ()):
        try:
            pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # whatever the object's own pickling raises
            yield CheckWarning(
                f"the object at index {index} cannot be pickled for workers that do not share memory, so it would "
                f"fail: {type(error).__name__}: {text_of(error)}",
                hint="Feed plain data or keys, and build the rest in the function.",
                id="poolsave.W003",
            )


def _check_databases(
    aliases: Iterable[str], worker_settings: _connections.SettingsByAlias, options: Options
) -> Iterator[CheckMessage]:
    if options.transaction is None:
        return
    servers: dict[str, DatabaseInfo] = {}
    for alias in _connections.configured_aliases(aliases):
        try:
            servers[alias] = inspect_database(alias, worker_settings[alias])
        except Exception as error:  # any error of the driver: workers would meet it, too
            yield CheckWarning(
                f"the database {alias!r} cannot be asked: {type(error).__name__}: {str(error).strip()}",
                hint="Workers will fail in the same way, unless it is up by then.",
                id="poolsave.W004",
            )
    yield from _check_journals(servers, options)
    yield from _check_poolers(servers)
    yield from _check_slots(
        {alias: server for alias, server in servers.items() if not server.pooler}, worker_settings, options
    )


def _check_journals(servers: Mapping[str, DatabaseInfo], options: Options) -> Iterator[CheckMessage]:
    for alias, server in servers.items():
        if server.journal_mode not in (None, "wal") and worker_range(options.workers).least > 1:
            yield CheckWarning(
                f"the SQLite database {alias!r} is not in WAL mode but in {server.journal_mode!r}, where everybody who "
                "reads waits for everybody who writes",
                hint='Set OPTIONS = {"init_command": "PRAGMA journal_mode=WAL"} for it in settings.DATABASES.',
                id="poolsave.W005",
            )


def _check_poolers(servers: Mapping[str, DatabaseInfo]) -> Iterator[CheckMessage]:
    for alias, server in servers.items():
        if server.pooler:
            yield CheckWarning(
                f"the database {alias!r} looks as if it is reached through a pooler such as PgBouncer: "
                f"{', and '.join(server.pooler)}",
                hint="Its own limit of connections counts. With transaction pooling, what belongs to a session (SET, "
                "advisory locks, LISTEN, prepared statements) does not stay with a worker: use SET LOCAL, and "
                "DISABLE_SERVER_SIDE_CURSORS = True for the database.",
                id="poolsave.W006",
            )


def _check_slots(
    servers: Mapping[str, DatabaseInfo], worker_settings: _connections.SettingsByAlias, options: Options
) -> Iterator[CheckMessage]:
    workers, sharing = worker_range(options.workers).least, aliases_per_server(servers, worker_settings)
    for alias, server in servers.items():
        needed = workers * sharing[alias]
        if server.free is not None and needed > server.free:
            yield CheckWarning(
                f"{workers} workers would need {needed} connections of the server of {alias!r}, which has "
                f"{server.free} to give",
                hint="Lower workers, or raise the server's limit (max_connections, or that of the role or database).",
                id="poolsave.W007",
            )


def _check_debug() -> Iterator[CheckMessage]:
    if settings.configured and settings.DEBUG:
        yield CheckWarning(
            "DEBUG is on, so that Django keeps the text of every query",
            hint="Set DEBUG = False for long runs, and before you measure anything.",
            id="poolsave.W008",
        )


def check_settings(**_kwargs: Any) -> Sequence[CheckMessage]:
    """For `manage.py check`: check `settings.POOLSAVE` and the environment."""
    messages = [as_check_error(error) for error in wrong_settings()]
    messages = messages or _errors_of([operating_settings])
    if not messages and "databases" in getattr(settings, "POOLSAVE", {}):
        messages += _errors_of([lambda: check_aliases_exist(Options.resolve({}).databases)])
    return messages


def check_databases(databases: Sequence[str] | None = None, **_kwargs: Any) -> Sequence[CheckMessage]:
    """For `manage.py check --database`: check how the named databases are set up for workers."""
    if any(True for _error in wrong_settings()):
        return []
    options = Options.resolve({})
    if options.executor == "serial":
        return []
    covered = _connections.configured_aliases(alias for alias in databases or () if alias in options.databases)
    files = [alias for alias in covered if connections[alias].vendor == "sqlite"]
    return list(_check_databases(files, _connections.worker_settings(own_transactions=files), options))
