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


@cache
def _guarded_connection(base: Any) -> Any:
    if hasattr(base, "is_guarded"):
        return base

    class Connection(base):  # type: ignore[misc]  # a second base would make `__class__` refuse it
        __slots__ = ()
        is_guarded = True

        @property
        def cursor_factory(self) -> Any:
            return guarded_cursor(self.__dict__["cursor_factory"], _GuardedCursor)

        @cursor_factory.setter
        def cursor_factory(self, factory: Any) -> None:
            self.__dict__["cursor_factory"] = factory

        def wait(self, *args: Any, **kwargs: Any) -> Any:
            guard: Any = guard_of(self)
            guard.has_ended()  # by what went past this method
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


class _GuardedCursor:
    connection: Any

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        guard = guard_of(self.connection)
        if guard is not None and guard.is_armed:
            guard.check_statement(query)
        return super().execute(query, *args, **kwargs)  # type: ignore[misc]
