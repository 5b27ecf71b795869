"""psycopg 3: refuses what ends an object's transaction, and notices that it has ended.

Every answer of the server passes through `Connection.wait`, after which the driver knows whether a transaction is open.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from .transaction_guard import TransactionGuard, guard_of, guarded_cursor, refusing

IDLE, INERROR, UNKNOWN = 0, 3, 4
"""libpq's PQTRANS_IDLE: no transaction is open; PQTRANS_INERROR: it can only be rolled back; PQTRANS_UNKNOWN: the
connection is closed."""


class Psycopg3Guard(TransactionGuard):
    """Puts a class of its own in place of the connection's while it is armed."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self._class = type(self.raw)
        self._was_open = False

    def arm(self) -> None:
        super().arm()
        self._was_open = self.raw.pgconn.transaction_status != IDLE
        self.raw.__class__ = _guarded_connection(self._class)  # type: ignore[arg-type]  # mypy calls types unhashable

    def disarm(self) -> None:
        self.raw.__class__ = self._class
        super().disarm()

    def is_over(self) -> bool:
        return self._was_open and bool(self.raw.pgconn.transaction_status == IDLE)

    def has_aborted(self) -> bool:
        return self.raw.pgconn.transaction_status in (INERROR, UNKNOWN)

    def note_status(self) -> None:
        """Note after an answer whether the transaction is open. Without autocommit every statement opens it."""
        if self.raw.pgconn.transaction_status != IDLE:
            self._was_open = True
        elif self._was_open or self.raw.autocommit:
            self.ended = True

    def watch_cursor(self, cursor: Any) -> None:
        cursor.__class__ = _guarded(type(cursor))


@cache
def _guarded_connection(base: Any) -> Any:
    if hasattr(base, "is_guarded"):
        return base

    class Connection(base):  # type: ignore[misc]  # a second base would make `__class__` refuse it
        __slots__ = ()
        is_guarded = True

        cursor_factory = _guarded_factory("cursor_factory")
        server_cursor_factory = _guarded_factory("server_cursor_factory")

        def wait(self, *args: Any, **kwargs: Any) -> Any:
            guard: Any = guard_of(self)
            guard.has_ended()  # by what went past this method
            if guard.buffer is not None and not guard.is_seen:
                guard.buffer.before_unseen()
            try:
                return super().wait(*args, **kwargs)
            finally:
                guard.note_status()

        def transaction(self, *args: Any, **kwargs: Any) -> Any:
            if self.pgconn.transaction_status == IDLE:  # this block would be the outermost one, and commit
                self.execute("SELECT 1")
            return super().transaction(*args, **kwargs)

        commit = refusing(base.commit)
        rollback = refusing(base.rollback)

    return Connection


def _guarded_factory(name: str) -> Any:
    def give(connection: Any) -> Any:
        return _guarded(connection.__dict__[name])

    def replace(connection: Any, factory: Any) -> None:
        connection.__dict__[name] = factory

    return property(give, replace)


def _guarded(factory: Any) -> Any:
    return guarded_cursor(factory, _GuardedServerCursor if hasattr(factory, "scrollable") else _GuardedCursor)


class _GuardedCursor:
    connection: Any

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        return self._after_check(super().execute, query, *args, **kwargs)  # type: ignore[misc]

    def executemany(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        return self._after_check(super().executemany, query, *args, **kwargs)  # type: ignore[misc]

    def copy(self, *args: Any, **kwargs: Any) -> Any:
        self._send_buffer()
        return super().copy(*args, **kwargs)  # type: ignore[misc]

    def stream(self, *args: Any, **kwargs: Any) -> Any:
        self._send_buffer()
        return super().stream(*args, **kwargs)  # type: ignore[misc]

    def _after_check(self, method: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        guard = guard_of(self.connection)
        if guard is None or not guard.is_armed:
            return method(query, *args, **kwargs)
        guard.check_statement(query)
        return _seen(guard, method, query, *args, **kwargs)

    def _send_buffer(self) -> None:
        guard = guard_of(self.connection)
        if guard is not None and guard.buffer is not None:
            guard.buffer.before_statement(None)


def _seen(guard: TransactionGuard, method: Any, *args: Any, **kwargs: Any) -> Any:
    was_seen, guard.is_seen = guard.is_seen, True
    try:
        return method(*args, **kwargs)
    finally:
        guard.is_seen = was_seen


def _fetch(name: str) -> Any:
    def fetch(self: Any, *args: Any, **kwargs: Any) -> Any:
        method, guard = getattr(super(_GuardedServerCursor, self), name), guard_of(self.connection)
        return method(*args, **kwargs) if guard is None else _seen(guard, method, *args, **kwargs)

    return fetch


class _GuardedServerCursor(_GuardedCursor):
    """Asks the server for more of what `execute` has shown to the guard."""

    fetchone, fetchmany, fetchall = _fetch("fetchone"), _fetch("fetchmany"), _fetch("fetchall")
    __next__, scroll, close = _fetch("__next__"), _fetch("scroll"), _fetch("close")
