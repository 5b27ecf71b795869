"""SQLite: begins an object's transaction late, refuses what ends it, and notices that it has ended.

A savepoint is set right after BEGIN. Any end of the transaction removes it. It costs no round trip.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import cache
from typing import Any

from .transaction_guard import TransactionGuard, check_end, guard_of


class SqliteGuard(TransactionGuard):
    """Recognises its transaction by a savepoint."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self._name = f"poolsave_{id(self)}"
        self._is_set = False
        self._is_workers = isinstance(self.raw, GuardedConnection)

    def arm(self) -> None:
        super().arm()
        if (
            not self._is_workers
        ):  # the caller's own connection, whose statements can be seen only if they come through Django
            self.connection.execute_wrappers.append(self._around_statement)
        if getattr(self.raw, "pending_begin", None) is None:
            self.set_savepoint()

    def set_savepoint(self) -> None:
        """Set the savepoint, right after the transaction has begun."""
        self._execute("SAVEPOINT")
        self._is_set = True

    def _execute(self, command: str) -> None:
        sqlite3.Connection.cursor(self.raw).execute(f"{command} {self._name}")  # bypasses the guards

    def disarm(self) -> bool:
        if not self._is_workers:
            self.connection.execute_wrappers.remove(self._around_statement)
        else:
            self.raw.pending_begin = None
        if self._is_set and not self.was_replaced() and not self.connection.closed_in_transaction:
            self._release()
        return super().disarm()

    def _release(self) -> None:
        try:
            self._execute("RELEASE")
        except sqlite3.ProgrammingError:  # the function has closed the driver's connection
            self.rolled_back = True
        except sqlite3.Error:
            self.ended = self.ended or not self.rolled_back

    def is_over(self) -> bool:
        if not self._is_set or self.rolled_back or self.connection.closed_in_transaction:
            return False
        return not self.raw.in_transaction

    def note_error(self) -> None:
        """Record whether a failed statement has undone the whole transaction (OR ROLLBACK, a full disk)."""
        if self.is_over() and not self.ended:
            self.note_rollback()

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
        return super().cursor(_guarded_cursor(factory))

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

    def commit(self) -> None:
        check_end(self, "commit()")
        super().commit()

    def rollback(self) -> None:
        check_end(self, "rollback()")
        super().rollback()

    def __exit__(self, *error: object) -> Any:
        check_end(self, "with connection")
        return super().__exit__(*error)  # type: ignore[arg-type]

    def begin_if_pending(self) -> None:
        """Begin the transaction, if that was postponed."""
        begin, self.pending_begin = self.pending_begin, None
        if begin is not None:
            begin()


@cache
def _guarded_cursor(base: Any) -> Any:
    if not isinstance(base, type) or issubclass(base, _GuardedCursor):
        return base
    return type(base.__name__, (_GuardedCursor, base), {})


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
        guard: Any = guard_of(self.connection)
        if guard is not None:
            guard.check_statement(statement)
            guard.has_ended()
        if self.connection.pending_begin is not None:
            self.connection.begin_if_pending()
        if guard is None:
            return execute(statement, *args)
        try:
            return execute(statement, *args)
        except BaseException:
            guard.note_error()
            raise
