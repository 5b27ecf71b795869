"""Every rule about database connections, threads and forks.

1. No connection, pool or cache client of the parent is used or closed in a forked child. An explicit close sends a
   Terminate on the socket that the parent still uses: psycopg compares process ids only when garbage is collected,
   and mysqlclient not even then. The child forgets the old objects but keeps them referenced for ever.
2. Workers have connections of their own, made from the caller's real `settings_dict`, so that under a test runner
   they write to the test database. They do not pool, and on SQLite they begin transactions IMMEDIATE.
3. Workers close what they opened.
4. No open SQLite file crosses a fork. SQLite keeps its locks per process and in memory: a child that inherits them
   believes to hold a lock that it does not, and rows that it commits vanish. The parent closes idle ones before the
   fork; it opens them again by itself. Source: "How To Corrupt An SQLite Database File", section 2.6.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import DatabaseErrorWrapper, load_backend

from ..errors import InsideTransaction, InvalidOperation
from .descriptors import open_sqlite_descriptors
from .redacted import RedactedDict
from .sqlite import GuardedConnection
from .transaction_guard import guard_of

SettingsByAlias: TypeAlias = Mapping[str, dict[str, Any]]

DUMMY_ENGINE = "django.db.backends.dummy"
CHECK_INTERVAL = 0.01
"""Seconds that chunks without any trouble may follow one another until all connections are looked at again."""


def configured_aliases(aliases: Iterable[str]) -> tuple[str, ...]:
    """Those of the aliases that have a database behind them."""
    return tuple(
        alias for alias in aliases if connections.settings.get(alias, {}).get("ENGINE", DUMMY_ENGINE) != DUMMY_ENGINE
    )


def worker_settings(*, own_transactions: Collection[str]) -> SettingsByAlias:
    """The caller's real database settings, as workers use them."""
    return {
        alias: _for_worker(connections[alias], own_transactions=alias in own_transactions)
        for alias in configured_aliases(connections)
    }


def _for_worker(connection: BaseDatabaseWrapper, *, own_transactions: bool) -> dict[str, Any]:
    settings = copy.deepcopy(RedactedDict(connection.settings_dict, OPTIONS={}))
    options = RedactedDict(connection.settings_dict["OPTIONS"])
    options.pop("pool", None)
    if connection.vendor == "sqlite":
        # A deferred transaction that reads and then writes fails with "database is locked" at once.
        options.setdefault("transaction_mode", "IMMEDIATE")
    settings["OPTIONS"] = options
    if settings.get("CONN_MAX_AGE") == 0:
        settings["CONN_MAX_AGE"] = None  # 0 would mean to connect anew for every chunk
    if own_transactions:
        settings["AUTOCOMMIT"] = True  # or atomic() would leave the commit to somebody else
    return settings


@contextmanager
def outside_event_loop() -> Iterator[None]:
    """Have `connections` show those of this thread: while an event loop runs, asgiref shows those of its task, and
    Django lets nothing be done with them."""
    loop = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(loop)


def wrappers_of_thread() -> list[Any]:
    """Connection wrappers of this thread, those of an event loop's task that runs in it included."""
    handler: Any = connections
    of_task = handler.all(initialized_only=True)
    with outside_event_loop():
        return list({id(wrapper): wrapper for wrapper in (*of_task, *handler.all(initialized_only=True))}.values())


def open_sqlite_files() -> list[Any]:
    """Wrappers of this thread that have a SQLite file open."""
    found = wrappers_of_thread()
    return [one for one in found if one.vendor == "sqlite" and one.connection is not None and not one.is_in_memory_db()]


def sqlite_is_open_elsewhere() -> bool:
    """Whether a SQLite file is open in this process that no wrapper of this thread has open."""
    return open_sqlite_descriptors().total() > len(open_sqlite_files())


def close_sqlite_files() -> None:
    """Before a fork: close the SQLite files of this thread.

    Raises:
        InsideTransaction: if one of them is inside a transaction, and so cannot be closed.
        InvalidOperation: if one is open elsewhere in this process.
    """
    refuse_open_sqlite_transactions()
    for wrapper in open_sqlite_files():
        (enforced,) = wrapper.connection.execute("PRAGMA foreign_keys").fetchone()
        with outside_event_loop():
            wrapper.close()
        if not enforced:
            _reopen_unenforced(wrapper)
    for alias in open_sqlite_descriptors():
        raise InvalidOperation(
            f"the SQLite database {alias!r} is open in another thread or event loop of this process, or by sqlite3 "
            'itself, and its locks do not survive a fork: close it there, or use start_method="forkserver"'
        )


def _reopen_unenforced(wrapper: Any) -> None:
    """Keep foreign keys from being enforced, as a schema editor has asked for: it remakes tables by dropping them, and
    a cascade would take along what points to their rows."""

    def begin() -> None:
        del wrapper.init_connection_state  # this instance's own; the next time it is the class's
        wrapper.init_connection_state()
        wrapper.connection.execute("PRAGMA foreign_keys = OFF")

    wrapper.init_connection_state = begin


def refuse_open_sqlite_transactions() -> None:
    """Refuse to fork while a SQLite file is inside a transaction of this thread.

    Raises:
        InsideTransaction: naming the alias.
    """
    for wrapper in open_sqlite_files():
        if wrapper.in_atomic_block:
            raise InsideTransaction(wrapper.alias)


def load_backends() -> None:
    """In a fork server: import the backends and drivers of all databases, without connecting to any."""
    for alias in configured_aliases(connections):
        load_backend(connections.settings[alias]["ENGINE"])


@contextmanager
def worker_connections(settings: SettingsByAlias, *, whole_process: bool) -> Iterator[None]:
    """Have connections of one's own in this thread, and leave none open.

    With `whole_process` threads that are started here get the same settings. That is for a process that does nothing
    else, and is not undone.
    """
    before = {alias: connections[alias] for alias in _initialised()}
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
            # The class's own close() keeps a SQLite database in memory open, for the sake of what is in it; here the
            # caller's connection does that.
            BaseDatabaseWrapper.close(connections[alias])
            if alias in before:
                connections[alias] = before[alias]
            else:
                del connections[alias]


@contextmanager
def refused(wrapper: BaseDatabaseWrapper) -> Iterator[None]:
    """Have everything fail that reaches a database by this wrapper, also by a cursor of it that a module keeps: a
    worker's transaction would know nothing of that."""
    wrapper.wrap_database_errors = UseRefused(wrapper)
    try:
        yield
    finally:
        vars(wrapper).pop("wrap_database_errors", None)  # Django's is made anew when it is asked for


class UseRefused(DatabaseErrorWrapper):
    """In the place of a wrapper's `wrap_database_errors`, by which Django goes wherever it calls the driver."""

    def __enter__(self) -> None:
        alias = self.wrapper.alias  # type: ignore[attr-defined]
        raise InvalidOperation(
            f"this connection of the database {alias!r}, or its cursor, was opened before the worker began, so that it "
            f"belongs to another process or thread: get one in the function, by connections[{alias!r}]"
        )


class OwnThreadOnly(DatabaseErrorWrapper):
    """The same for the caller of threads, in whose own thread everything works as ever. Django asks for the thread when
    a cursor is made, but not when it is used."""

    def __enter__(self) -> None:
        self.wrapper.validate_thread_sharing()  # type: ignore[attr-defined]


def keep_from_other_threads() -> None:
    """Have cursors of this thread's connections fail in threads that have connections of their own."""
    for wrapper in wrappers_of_thread():
        wrapper.wrap_database_errors = OwnThreadOnly(wrapper)


def _wrapper(alias: str, settings: dict[str, Any]) -> Any:
    backend = load_backend(settings["ENGINE"]).DatabaseWrapper
    if backend.vendor == "postgresql":
        options = RedactedDict(_prefixing_options(settings["OPTIONS"]), **settings["OPTIONS"])
        settings = RedactedDict(settings, OPTIONS=options)
    if backend.vendor == "sqlite":
        options = RedactedDict({"factory": GuardedConnection}, **settings["OPTIONS"])
        settings = RedactedDict(settings, OPTIONS=options)
    wrapper = backend(settings, alias)
    if settings["OPTIONS"].get("factory") is GuardedConnection:
        _delay_begin_until_first_statement(wrapper)
    return wrapper


def _prefixing_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """What makes connections of psycopg2 take savepoints along with other statements, if nobody has other wishes."""
    from django.db.backends.postgresql.psycopg_any import is_psycopg3  # drivers are there if their backend is used

    if is_psycopg3 or "connection_factory" in options or "cursor_factory" in options:
        return {}
    from .psycopg2 import PrefixingConnection, PrefixingCursor

    return {"connection_factory": PrefixingConnection, "cursor_factory": PrefixingCursor}


def _delay_begin_until_first_statement(wrapper: Any) -> None:
    """Let atomic() on SQLite take the lock when the first statement comes, through Django or past it.

    There is one writer at a time, and BEGIN IMMEDIATE makes this transaction the one: what an object computes before
    it asks the database anything would keep all other workers waiting.
    """
    begin = wrapper._start_transaction_under_autocommit

    def begin_first() -> None:
        # Not if the transaction has ended without any statement, and this one comes after it.
        if wrapper.in_atomic_block:
            begin()
            guard: Any = guard_of(wrapper.connection)
            if guard is not None:
                guard.set_savepoint()

    def begin_later() -> None:
        wrapper.connection.begin_is_due = begin_first

    wrapper._start_transaction_under_autocommit = begin_later


def _apply_to_process(settings: SettingsByAlias) -> None:
    # Also for threads that the user's code starts in this process, and for code that reads settings.DATABASES.
    for alias, values in settings.items():
        connections.settings[alias] = values


def _initialised() -> list[str]:
    return [connection.alias for connection in connections.all(initialized_only=True)]


class ConnectionMaintenance:
    """What comes between two chunks of a worker, in its thread: letting go of connections that are broken or too old,
    and of what DEBUG has logged."""

    def __init__(self) -> None:
        self._known: Any = connections.all(initialized_only=True)
        self._looked = 0.0

    def reached(self, *, troubled: bool) -> None:
        """Look at all connections if anything went wrong, as poolsave (`troubled`) or Django has noticed, or if it is
        time to: to find them takes as long as several objects that do nothing."""
        for connection in self._known:
            connection.queries_log.clear()
            connection.health_check_done = False
            troubled = troubled or connection.errors_occurred or _autocommit_was_changed(connection)
        now = time.perf_counter()
        if troubled or now - self._looked > CHECK_INTERVAL:
            self._looked = now
            self._look()

    def _look(self) -> None:
        self._known = connections.all(initialized_only=True)  # somebody may have put another one in a place
        for connection in self._known:
            connection.queries_log.clear()
            connection.close_if_unusable_or_obsolete()


def _autocommit_was_changed(connection: Any) -> bool:
    return connection.connection is not None and connection.autocommit != connection.settings_dict["AUTOCOMMIT"]
