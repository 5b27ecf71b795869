"""SQLite: begins an object's transaction late, refuses what ends it, notices that it has ended, and measures locks.

A savepoint is set right after BEGIN. Any end of the transaction removes it. It costs no round trip.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

from django.conf import settings
from django.db import connections

from .connections import installed_aliases, open_sqlite_files
from .transaction_guard import TransactionGuard, armed_guard_of, check_end, guard_of, guarded_cursor, refusing

ENDS = ("_commit", "_rollback")
"""Methods by which Django ends a transaction."""


class SqliteGuard(TransactionGuard):
    """Recognises its transaction by a savepoint."""

    _is_set = False
    _written: object = None
    """What the driver says of this connection's writes at the moment when the transaction was rolled back."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self._is_workers = isinstance(self.raw, GuardedConnection)
        self._changes = self.raw.total_changes

    def arm(self) -> None:
        super().arm()
        if not self._is_workers:  # the caller's own connection, whose statements show only if they come through Django
            self.connection.execute_wrappers.append(self._around_statement)
        if getattr(self.raw, "pending_begin", None) is None:
            self.set_savepoint()

    def set_savepoint(self) -> None:
        """Set the savepoint, right after the transaction has begun."""
        self._note_changes_before()
        self._execute(f"SAVEPOINT poolsave_{id(self)}")
        self._is_set = True

    def _note_changes_before(self) -> None:
        """Note what a cursor that the connection has not made has changed before BEGIN: it is committed already."""
        if self.raw.total_changes != self._changes:
            self.ended = True

    def _execute(self, statement: str) -> Any:
        return sqlite3.Connection.cursor(self.raw).execute(statement)  # bypasses the guards

    def disarm(self) -> None:
        if not self._is_workers:
            self.connection.execute_wrappers.remove(self._around_statement)
        else:
            # If the function has sent nothing, a BEGIN would take the write lock for an empty COMMIT.
            if self.raw.pending_begin is not None:
                with suppress(sqlite3.ProgrammingError):  # the function has closed the driver's connection
                    self._note_changes_before()
            self.raw.pending_begin = None
        if self._is_set and not self.was_replaced() and not self.connection.closed_in_transaction:
            self._release()
        super().disarm()

    def _release(self) -> None:
        if self.rolled_back:
            self.ended = self.ended or self._written != self._writes()
            return
        try:
            self._execute(f"RELEASE poolsave_{id(self)}")
        except sqlite3.ProgrammingError:  # the function has closed the driver's connection
            self.rolled_back = True
        except sqlite3.Error:
            self.ended = True

    def _writes(self) -> object:
        try:
            return self.raw.in_transaction, self.raw.total_changes, *self._execute("PRAGMA schema_version")
        except sqlite3.Error:  # closed: nothing can have been written since
            return self._written

    def is_over(self) -> bool:
        if not self._is_set or self.rolled_back or self.connection.closed_in_transaction:
            return False
        return not self.raw.in_transaction

    def has_transaction(self) -> bool:
        return bool(self.connection.connection.in_transaction)

    def has_aborted(self) -> bool:  # OR ROLLBACK, RAISE(ROLLBACK) and a full disk end the transaction
        has_begun = self.connection.commit_on_exit and not getattr(self.raw, "pending_begin", None)
        return has_begun and not self.raw.in_transaction

    def note_error(self) -> None:
        """Record whether a failed statement has undone the whole transaction (OR ROLLBACK, a full disk)."""
        if self.is_over() and not self.ended:
            self.note_rollback()

    def note_rollback(self) -> None:
        super().note_rollback()
        self._written = self._writes()

    def _around_statement(self, execute: Callable[..., Any], statement: Any, *rest: Any) -> Any:
        self.check_statement(statement)
        self.has_ended()
        try:
            return execute(statement, *rest)
        except Exception:
            self.note_error()
            raise


class GuardedConnection(sqlite3.Connection):
    """A worker's connection, which runs a postponed BEGIN before the first statement, past Django as well."""

    pending_begin: Callable[[], None] | None = None

    def cursor(self, factory: Any = sqlite3.Cursor) -> Any:
        return super().cursor(guarded_cursor(factory, _GuardedCursor))

    # The driver's own methods bypass cursor().
    def execute(self, *statement: Any) -> Any:
        return self.cursor().execute(*statement)

    def executemany(self, *statement: Any) -> Any:
        return self.cursor().executemany(*statement)

    def executescript(self, script: Any) -> Any:
        return self.cursor().executescript(script)

    def blobopen(self, *args: Any, **kwargs: Any) -> Any:
        self.begin_if_pending()
        return super().blobopen(*args, **kwargs)

    commit = refusing(sqlite3.Connection.commit)
    rollback = refusing(sqlite3.Connection.rollback)
    __exit__ = refusing(sqlite3.Connection.__exit__, "with connection")

    def begin_if_pending(self) -> None:
        """Begin the transaction, if that was postponed."""
        begin, self.pending_begin = self.pending_begin, None
        if begin is not None:
            begin()


class _GuardedCursor:
    connection: Any

    def execute(self, statement: Any, *args: Any) -> Any:
        return self._guarded(super().execute, statement, *args)  # type: ignore[misc]

    def executemany(self, statement: Any, *args: Any) -> Any:
        return self._guarded(super().executemany, statement, *args)  # type: ignore[misc]

    def executescript(self, script: Any) -> Any:
        check_end(self.connection, "executescript()")
        return super().executescript(script)  # type: ignore[misc]

    def _guarded(self, execute: Callable[..., Any], statement: Any, *args: Any) -> Any:
        guard: Any = armed_guard_of(self.connection)
        if guard is None:
            self.connection.begin_if_pending()
            return execute(statement, *args)
        guard.check_statement(statement)
        guard.has_ended()
        self.connection.begin_if_pending()
        try:
            return execute(statement, *args)
        except BaseException:
            guard.note_error()
            raise


def delay_begin(wrapper: Any) -> None:
    """Delay the BEGIN of atomic() on SQLite until the first statement, through Django or past it.

    BEGIN IMMEDIATE takes the only write lock. What an object computes before its first statement would otherwise keep
    all other workers waiting.
    """
    begin = wrapper._start_transaction_under_autocommit

    def begin_now() -> None:
        # The transaction may have ended without a statement; then this one comes after it and needs no BEGIN.
        if wrapper.in_atomic_block:
            begin()
            guard: Any = guard_of(wrapper.connection)
            if guard is not None:
                guard.set_savepoint()

    def postpone() -> None:
        wrapper.connection.pending_begin = begin_now

    wrapper._start_transaction_under_autocommit = postpone


class WholeTables:
    """While entered, and workers write, `iterator()` in this thread reads all rows of a SQLite table at once.

    A query that is not at its end holds a lock for which every COMMIT waits, until its time-out. With a write-ahead log
    there is no such lock.
    """

    # Not a generator, which would change the exception that ends a run: some refuse that.

    def __enter__(self) -> None:
        with ExitStack() as stack:
            for alias in installed_aliases() if settings.configured else ():
                connection: Any = connections[alias]
                if connection.vendor == "sqlite":
                    stack.callback(_read_whole_tables(connection))
            self._stack = stack.pop_all()

    def __exit__(self, *_exc_info: object) -> None:
        self._stack.close()


def _read_whole_tables(connection: Any) -> Callable[[], None]:
    """Let the connection do so, and give what undoes it."""
    make, features, name = connection.chunked_cursor, vars(connection.features), "can_use_chunked_reads"
    before = {key: value for key, value in features.items() if key == name}
    replaced = {key: value for key, value in vars(connection).items() if key == "chunked_cursor"}

    def chunked_cursor() -> Any:
        cursor = make()
        (mode,) = connection.connection.execute("PRAGMA journal_mode").fetchone()
        features[name] = mode == "wal"
        return cursor

    def undo() -> None:
        del connection.chunked_cursor
        vars(connection).update(replaced)
        features.pop(name, None)
        features.update(before)

    connection.chunked_cursor = chunked_cursor
    return undo


class WriteLockTimer:
    """Measures how long the caller's own SQLite connections hold the write lock of their files.

    A worker takes that lock with the first query of its transaction and releases it after COMMIT, while all others
    wait. The lock's share of the work limits the gain of a pool. `_auto/sampling.py` measures it before a pool starts.
    """

    def __init__(self) -> None:
        self.held = 0.0
        """Seconds of transactions, and of writing statements outside of them."""
        self._since: float | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Measure on the SQLite files that this thread has open now."""
        with ExitStack() as stack:
            for connection in open_sqlite_files():
                stack.enter_context(self._watched(connection))
            yield
        self._since = None

    @contextmanager
    def _watched(self, connection: Any) -> Iterator[None]:
        # Runs can be nested, and other code may have replaced the same methods.
        before = {name: vars(connection)[name] for name in ENDS if name in vars(connection)}
        note = self._watch(connection)
        try:
            yield
        finally:
            connection.execute_wrappers.remove(note)
            for name in ENDS:
                if name in before:
                    setattr(connection, name, before[name])
                else:
                    vars(connection).pop(name, None)

    def _watch(self, connection: Any) -> Callable[..., Any]:
        def note(execute: Callable[..., Any], sql: Any, *more: Any) -> Any:
            if not connection.in_atomic_block:
                return execute(sql, *more) if _only_reads(sql) else self._timed(execute, sql, *more)
            # Here BEGIN was sent earlier; in a worker it is sent with this first query.
            if self._since is None:
                self._since = time.perf_counter()
            return execute(sql, *more)

        connection.execute_wrappers.append(note)
        for name in ENDS:
            setattr(connection, name, partial(self._ended, getattr(connection, name)))
        return note

    def _timed(self, execute: Callable[..., Any], *query: Any) -> Any:
        started = time.perf_counter()
        try:
            return execute(*query)
        finally:
            self.held += time.perf_counter() - started

    def _ended(self, end: Callable[[], Any]) -> Any:
        try:
            return end()
        finally:
            if self._since is not None:
                self.held += time.perf_counter() - self._since
                self._since = None


def _only_reads(sql: Any) -> bool:
    return isinstance(sql, str) and sql.lstrip()[:6].upper() in ("SELECT", "PRAGMA", "BEGIN")
