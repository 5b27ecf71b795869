"""psycopg 3: refuses what ends an object's transaction, and notices that it has ended.

Every answer of the server passes through `Connection.wait`, after which the driver knows whether a transaction is open.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from .transaction_guard import TransactionGuard, check_end, guard_of

IDLE = 0
"""libpq's PQTRANS_IDLE: no transaction is open."""


class Psycopg3Guard(TransactionGuard):
    """Puts a class of its own in place of the connection's while it is armed."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self._class = type(self.raw)

    def arm(self) -> None:
        super().arm()
        self.raw.__class__ = _guarded_connection(self._class)  # type: ignore[arg-type]  # mypy calls types unhashable

    def disarm(self) -> bool:
        self.raw.__class__ = self._class
        return super().disarm()


@cache
def _guarded_connection(base: Any) -> Any:
    if hasattr(base, "is_guarded"):
        return base

    class Connection(base):  # type: ignore[misc]  # a second base would make `__class__` refuse it
        __slots__ = ()
        is_guarded = True

        @property
        def cursor_factory(self) -> Any:
            return _guarded_cursor(self.__dict__["cursor_factory"])

        @cursor_factory.setter
        def cursor_factory(self, factory: Any) -> None:
            self.__dict__["cursor_factory"] = factory

        def wait(self, *args: Any, **kwargs: Any) -> Any:
            was_open = self.pgconn.transaction_status != IDLE
            try:
                return super().wait(*args, **kwargs)
            finally:
                _note_status(self, was_open)

        def transaction(self, *args: Any, **kwargs: Any) -> Any:
            _begin(self)  # otherwise this block would be the outermost one, and commit
            return super().transaction(*args, **kwargs)

        def commit(self) -> None:
            check_end(self, "commit()")
            super().commit()

        def rollback(self) -> None:
            check_end(self, "rollback()")
            super().rollback()

    return Connection


def _begin(raw: Any) -> None:
    if raw.pgconn.transaction_status == IDLE:
        raw.execute("SELECT 1")


def _note_status(raw: Any, was_open: bool) -> None:
    if raw.pgconn.transaction_status == IDLE and (was_open or raw.autocommit):
        guard = guard_of(raw)
        if guard is not None:
            guard.ended = True


@cache
def _guarded_cursor(base: Any) -> Any:
    return base if issubclass(base, _GuardedCursor) else type(base.__name__, (_GuardedCursor, base), {})


class _GuardedCursor:
    connection: Any

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        guard = guard_of(self.connection)
        if guard is not None:
            guard.check_statement(query)
        return super().execute(query, *args, **kwargs)  # type: ignore[misc]
