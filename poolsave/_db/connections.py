"""The rules about database connections, threads and forks.

1. No connection, pool or cache client of the parent is used or closed in a forked child. An explicit close sends a
   Terminate on the socket that the parent still uses: psycopg compares process ids only when garbage is collected,
   and mysqlclient not even then. The child drops the old objects from Django's registry and keeps them referenced.
2. Workers have connections of their own, made from the caller's real `settings_dict`, so that under a test runner
   they write to the test database. They do not pool, and on SQLite they begin transactions IMMEDIATE.
3. Workers close what they opened.
4. No open SQLite file crosses a fork. SQLite keeps its locks per process and in memory: a child that inherits them
   believes that it holds a lock, which it does not, and rows that it commits vanish. The parent closes idle files
   before the fork, and Django opens them again when they are used. Source: "How To Corrupt An SQLite Database File",
   section 2.6.

`_worker/job.py` calls this when it opens and closes a worker, and `_runs/preflight.py` and `_runs/checks.py` before a
run. What a fork needs (1 and 4) is in `fork_safety.py`.
"""

from __future__ import annotations

import asyncio
import copy
import os
import socket
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

from asgiref.sync import AsyncToSync
from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import DatabaseErrorWrapper, load_backend

from .._runtime.redacted import RedactedDict
from ..errors import DatabaseUnreachable, InvalidOperation

SettingsByAlias: TypeAlias = Mapping[str, dict[str, Any]]

MAX_ANSWER_TIME = 1.0
"""Seconds for the answer of a thread that waits in `async_to_sync()`. If it is busy it may be waiting for this one."""
DUMMY_ENGINE = "django.db.backends.dummy"
NO_DATABASE = {"ENGINE": DUMMY_ENGINE}
MAX_SESSION_NAME = 63
"""Bytes of a name that PostgreSQL keeps."""
MAX_HOST_NAME = 30
CHECK_INTERVAL = 0.01
"""Seconds between two checks of all connections, as long as no error occurs. A check costs as much as several objects
that do nothing."""
RELEASE_LOCKS = {"postgresql": "SELECT pg_advisory_unlock_all()", "mysql": "SELECT RELEASE_ALL_LOCKS()"}
"""By vendor: releases the locks that outlast their transaction. It takes a round trip, so it is sent only after a
failure."""


def configured_aliases(aliases: Iterable[str]) -> tuple[str, ...]:
    """Give those of the aliases that have a database."""
    return tuple([alias for alias in aliases if connections.settings.get(alias, NO_DATABASE)["ENGINE"] != DUMMY_ENGINE])


def installed_aliases() -> tuple[str, ...]:
    """Give the configured aliases whose driver is installed. A project can do without one that it does not use."""
    return tuple(alias for alias in configured_aliases(connections) if _is_installed(connections.settings[alias]))


def _is_installed(settings: Mapping[str, Any]) -> bool:
    try:
        load_backend(settings["ENGINE"])
    except ImproperlyConfigured:
        return False
    return True


def worker_settings(*, own_transactions: Collection[str], marked: bool = False) -> SettingsByAlias:
    """Give the caller's real database settings, adapted for workers.

    `marked`: their sessions on PostgreSQL have `session_mark()` in their name.
    """
    settings = {
        alias: _for_worker(connections[alias], own_transactions=alias in own_transactions)
        for alias in installed_aliases()
    }
    for alias, values in settings.items() if marked else ():
        if connections[alias].vendor == "postgresql":
            mark, options = session_mark(), values["OPTIONS"]
            name = str(options.get("application_name", ""))[: MAX_SESSION_NAME - len(mark) - 1]
            options["application_name"] = f"{name} {mark}".lstrip()
    return settings


def session_mark() -> str:
    """Give what tells the sessions of this process's workers from all others on a server."""
    return f"[poolsave {os.getpid()}@{socket.gethostname()[:MAX_HOST_NAME]}]"


def _for_worker(connection: BaseDatabaseWrapper, *, own_transactions: bool) -> dict[str, Any]:
    settings = copy.deepcopy(RedactedDict(connection.settings_dict, OPTIONS={}))
    options = RedactedDict(connection.settings_dict["OPTIONS"])
    options.pop("pool", None)
    if connection.vendor == "sqlite":
        # A deferred transaction that reads and then writes fails with "database is locked" at once.
        options.setdefault("transaction_mode", "IMMEDIATE")
    settings["OPTIONS"] = options
    if settings.get("CONN_MAX_AGE") == 0:
        settings["CONN_MAX_AGE"] = None  # 0 would open a connection for every chunk
    if own_transactions:
        settings["AUTOCOMMIT"] = True  # otherwise atomic() would not commit
    return settings


@contextmanager
def outside_event_loop() -> Iterator[None]:
    """Make `connections` give this thread's connections.

    While an event loop runs, asgiref gives those of the loop's task, and Django refuses to use them.
    """
    loop = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(loop)


def wrappers_of_thread() -> list[Any]:
    """Give the connection wrappers of this thread and of an event loop's task that runs in it."""
    handler: Any = connections
    of_task: list[Any] = handler.all(initialized_only=True)
    if asyncio._get_running_loop() is None:
        return of_task
    with outside_event_loop():
        return list({id(wrapper): wrapper for wrapper in (*of_task, *handler.all(initialized_only=True))}.values())


def open_sqlite_files() -> list[Any]:
    """Give the wrappers of this thread that have a SQLite file open."""
    return [
        wrapper
        for wrapper in wrappers_of_thread()
        if wrapper.vendor == "sqlite" and wrapper.connection is not None and not wrapper.is_in_memory_db()
    ]


def path_of(settings: Mapping[str, Any]) -> str:
    """Give the path of a database's file. One in memory has a name in its place."""
    name = str(settings["NAME"])
    return unquote(urlsplit(name).path) if name.startswith("file:") else name


def check_folder_exists(alias: str, settings: Mapping[str, Any]) -> None:
    """Refuse a file that cannot be made. It is not opened, which would make it, or have it stay open beside a lock.

    Raises:
        DatabaseUnreachable: naming the folder.
    """
    folder = os.path.dirname(path_of(settings))
    if folder and not os.path.isdir(folder):
        raise DatabaseUnreachable(alias, f"there is no folder {folder!r} for its file")


def wrappers_of_waiting_thread() -> list[Any]:
    """Give the connection wrappers of the thread that waits in `async_to_sync()` for the event loop of this one.

    Only that thread has them, so it is asked. It runs what `sync_to_async()` sends to it, and may be busy with that.
    """
    loop: Any = asyncio._get_running_loop()
    executor = AsyncToSync.loop_thread_executors.get(loop)
    if executor is None:
        return []
    future = executor.submit(wrappers_of_thread)
    try:
        return future.result(MAX_ANSWER_TIME)
    except TimeoutError:
        future.cancel()
        return []


def load_backends() -> None:
    """Import the backends and drivers of all databases in a fork server, without connecting to any."""
    installed_aliases()


@contextmanager
def worker_connections(settings: SettingsByAlias, *, whole_process: bool) -> Iterator[None]:
    """Give this thread connections of its own, and close them at the end.

    With `whole_process`, threads that are started here get the same settings. That is not undone, so it is only for a
    process that does nothing else.
    """
    before = {connection.alias: connection for connection in connections.all(initialized_only=True)}
    if whole_process:
        connections.close_all()  # of queries that the project makes as it is imported
        _apply_to_process(settings)
    for alias, values in settings.items():
        connections[alias] = _wrapper(alias, values)
    try:
        with ExitStack() as stack:
            for wrapper in before.values():
                stack.enter_context(refused(wrapper))
            yield
    finally:
        for alias in settings:
            # SQLite's own close() keeps a database in memory open, to preserve its content; here the caller's
            # connection preserves it.
            BaseDatabaseWrapper.close(connections[alias])
            if alias in before:
                connections[alias] = before[alias]
            else:
                del connections[alias]


@contextmanager
def refused(wrapper: BaseDatabaseWrapper) -> Iterator[None]:
    """Make every use of this wrapper fail, also by a cursor that a module keeps: the statements would run outside of
    the worker's transaction."""
    before = wrapper.wrap_database_errors
    wrapper.wrap_database_errors = UseRefused(wrapper)
    try:
        yield
    finally:
        wrapper.wrap_database_errors = before


class UseRefused(DatabaseErrorWrapper):
    """Replaces a wrapper's `wrap_database_errors`, which Django enters around every call of the driver."""

    def __enter__(self) -> None:
        alias = self.wrapper.alias  # type: ignore[attr-defined]
        raise InvalidOperation(
            f"this connection of the database {alias!r}, or its cursor, was opened before the worker began, so that it "
            f"belongs to another process or thread: get one in the function, by connections[{alias!r}]"
        )


class OwnThreadOnly(DatabaseErrorWrapper):
    """The same for connections of the thread that started worker threads: other threads are refused.

    Django checks the thread when a cursor is made, but not when it is used.
    """

    def __init__(self, wrapper: Any) -> None:
        super().__init__(wrapper)
        self.before = wrapper.wrap_database_errors
        self.workers = 0
        """How many worker threads are open."""

    def __enter__(self) -> None:
        self.wrapper.validate_thread_sharing()  # type: ignore[attr-defined]


_own_thread_lock = threading.Lock()
"""Held while worker threads count themselves: the first one makes an `OwnThreadOnly`, the last one removes it."""


@contextmanager
def kept_from_other_threads(wrappers: Sequence[Any]) -> Iterator[None]:
    """While a worker thread is open, make cursors of these connections fail in all threads but their own."""
    with _own_thread_lock:
        for wrapper in wrappers:
            if not isinstance(wrapper.wrap_database_errors, OwnThreadOnly):
                wrapper.wrap_database_errors = OwnThreadOnly(wrapper)
            wrapper.wrap_database_errors.workers += 1
    try:
        yield
    finally:
        with _own_thread_lock:
            for wrapper in wrappers:
                _leave_to_other_threads(wrapper)


def _leave_to_other_threads(wrapper: Any) -> None:
    errors = wrapper.wrap_database_errors
    if isinstance(errors, OwnThreadOnly):
        errors.workers -= 1
        if not errors.workers:
            wrapper.wrap_database_errors = errors.before


def _wrapper(alias: str, settings: dict[str, Any]) -> Any:
    backend = load_backend(settings["ENGINE"]).DatabaseWrapper
    if backend.vendor == "postgresql":
        options = RedactedDict(_prefixing_options(settings["OPTIONS"]), **settings["OPTIONS"])
        settings = RedactedDict(settings, OPTIONS=options)
    if backend.vendor == "sqlite":
        from .sqlite import GuardedConnection, delay_begin  # imported here: its module imports this one

        options = RedactedDict({"factory": GuardedConnection}, **settings["OPTIONS"])
        wrapper = backend(RedactedDict(settings, OPTIONS=options), alias)
        if options["factory"] is GuardedConnection:
            delay_begin(wrapper)
        return wrapper
    return backend(settings, alias)


def _prefixing_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Give the options by which psycopg2 sends savepoints together with other statements; none if the project has set
    factories of its own."""
    from django.db.backends.postgresql.psycopg_any import is_psycopg3  # imported here: the driver may not be installed

    if is_psycopg3 or "connection_factory" in options or "cursor_factory" in options:
        return {}
    from .psycopg2 import PrefixingConnection, PrefixingCursor

    return {"connection_factory": PrefixingConnection, "cursor_factory": PrefixingCursor}


def _apply_to_process(settings: SettingsByAlias) -> None:
    # This reaches threads that the user's code starts, and code that reads settings.DATABASES.
    for alias, values in settings.items():
        connections.settings[alias] = values


class ConnectionMaintenance:
    """Closes broken and expired connections between two chunks of a worker, in its thread, and clears DEBUG's log of
    queries."""

    def __init__(self) -> None:
        self._known: Any = connections.all(initialized_only=True)
        self._checked_at = 0.0

    def after_chunk(self, *, had_errors: bool) -> None:
        """Check all connections after an error that poolsave (`had_errors`) or Django has seen, and else every
        `CHECK_INTERVAL` seconds."""
        for connection in self._known:
            connection.queries_log.clear()
            # As Django does after a request: with CONN_HEALTH_CHECKS the connection is checked again when it is next
            # used.
            connection.health_check_done = False
            had_errors = had_errors or connection.errors_occurred or _autocommit_was_changed(connection)
        now = time.perf_counter()
        if had_errors or now - self._checked_at > CHECK_INTERVAL:
            self._checked_at = now
            self._check()

    def _check(self) -> None:
        self._known = connections.all(initialized_only=True)  # the user's code may have replaced a connection
        for connection in self._known:
            connection.queries_log.clear()
            connection.close_if_unusable_or_obsolete()


def _autocommit_was_changed(connection: Any) -> bool:
    return connection.connection is not None and connection.autocommit != connection.settings_dict["AUTOCOMMIT"]


def release_session_locks() -> None:
    """Release the locks of this thread's connections, which must be a worker's own and outside of any transaction.

    `pg_advisory_lock()` and `GET_LOCK()` outlast their transaction. A function keeps the lock if it fails between lock
    and unlock, or if the aborted transaction refuses the unlock. A plain loop is not affected, since a session may take
    its own lock again. In a pool all other workers would wait for ever.
    """
    for connection in connections.all(initialized_only=True):
        statement = RELEASE_LOCKS.get(connection.vendor)
        if statement is None or connection.connection is None or connection.in_atomic_block:
            continue
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
        except Error:  # left in a transaction, or gone: closing it ends the session and its locks
            connection.close()
