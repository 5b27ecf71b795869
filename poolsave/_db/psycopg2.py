"""Connections of psycopg2 on which something can go ahead of the next statement, in the same question to the server.

psycopg2 sends what it is given as one simple query: several statements take one round trip, and the answer is that of
the last. Whatever is sent, by Django or past it, goes through the methods below, so that nothing overtakes what is due.
One thing cannot be seen: a cursor or large object that somebody makes without asking the connection for it
(`psycopg2.extensions.cursor(connection)`), and libpq itself used by `pgconn_ptr`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from threading import RLock
from typing import Any, ParamSpec, TypeVar

import psycopg2
import psycopg2.extensions
from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from .transaction_guard import TransactionGuard, check_end, guard_of

P = ParamSpec("P")
R = TypeVar("R")


class Psycopg2Guard(TransactionGuard):
    """Sees what goes through cursors of the connection's own class, and where its connection is a worker's, all."""

    _was_open = False

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self._factory = self.raw.cursor_factory

    def arm(self) -> None:
        super().arm()
        if not isinstance(self.raw, PrefixingConnection):
            self.raw.cursor_factory = _guarded_cursor(self._factory or psycopg2.extensions.cursor)

    def disarm(self) -> bool:
        if not isinstance(self.raw, PrefixingConnection):
            self.raw.cursor_factory = self._factory
        return super().disarm()

    def is_over(self) -> bool:
        return self._was_open and self._is_idle()

    def _is_idle(self) -> bool:
        return not self.raw.closed and bool(self.raw.get_transaction_status() == TRANSACTION_STATUS_IDLE)

    def execute(self, execute: Callable[..., None], query: Any, *values: Any) -> None:
        """Check the statement, and look before and after it whether a transaction is open."""
        self.check_statement(query)
        self.has_ended()
        try:
            execute(query, *values)
        finally:
            self._was_open = True
            self.has_ended()


@dataclass(slots=True)
class PendingPrefix:
    """What has to reach the server before anything else does."""

    text: bytes
    undo: bytes
    """Leads back to right after it."""
    begun: bool = False
    """Whether it may have reached the server. False says that nothing has been sent since it became due."""


class PrefixingConnection(psycopg2.extensions.connection):
    """Holds what is due, until it was sent or is forgotten."""

    due: PendingPrefix | None = None
    _sees_all = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.turn = RLock()  # an object's own threads may share this connection; the first one takes along what is due

    def send_ahead(self, text: str, undo: str) -> PendingPrefix | None:
        """Have the statements sent before anything else; None if somebody has what can send something unseen.

        `undo` leads back to right after them.
        """
        if self._sees_all:
            # A line of its own, or the server's messages would quote it.
            self.due = PendingPrefix(text.encode() + b";\n", undo.encode())
            return self.due
        return None

    def forget(self) -> None:
        """Send nothing any more of what is still due."""
        self.due = None

    def catch_up(self) -> None:
        """Send what is due, by itself."""
        if self.due is None:
            return
        with self.turn, super().cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
            if self.due is not None:  # no other thread has sent it in the meantime
                self.send_due(self.due, cursor.execute, b"")

    def send_due(self, due: PendingPrefix, execute: Callable[[bytes], None], statement: bytes) -> None:
        """Send what is due and the statement. If this fails it stays due.

        Somebody may catch the error and go on, although the transaction is no longer the one that he believes in.
        """
        due.begun = True  # before, since an exception may come at any time: a time-out's, say
        execute(due.text + statement)
        self.due = None

    def undo_statement(self, due: PendingPrefix, error: psycopg2.Error) -> bool:
        """Whether the statement that failed is to be sent once more, by itself.

        The server tells where in the text it has found the mistake, and counts what went ahead. It looks for such
        mistakes before it runs a statement, so that it finds them again. Not handled: what it cannot even parse, of
        which nothing has been run; then the chunk is run again, object by object.
        """
        if error.diag.statement_position is None:
            return False
        try:
            with super().cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
                cursor.execute(due.undo)
        except psycopg2.Error:
            return False
        self.due = None
        return True

    def cursor(self, name: Any = None, cursor_factory: Any = None, *args: Any, **kwargs: Any) -> Any:
        factory = cursor_factory or self.cursor_factory
        if factory is not PrefixingCursor:
            self._see_no_more()
        elif name is not None:
            factory = NamedCursor
        return super().cursor(name, factory, *args, **kwargs)

    def lobject(self, *args: Any, **kwargs: Any) -> Any:
        self._see_no_more()
        return super().lobject(*args, **kwargs)

    def commit(self) -> None:
        check_end(self, "commit()")
        super().commit()

    def rollback(self) -> None:
        check_end(self, "rollback()")
        super().rollback()

    def set_isolation_level(self, level: Any) -> None:
        check_end(self, "set_isolation_level()")
        super().set_isolation_level(level)

    def _see_no_more(self) -> None:
        # For good, since nobody says when it is used for the last time.
        self.catch_up()
        self._sees_all = False


def _after_flush(method: Callable[P, R]) -> Callable[P, R]:
    def after(*args: P.args, **kwargs: P.kwargs) -> R:
        cursor: Any = args[0]
        cursor.connection.catch_up()
        return method(*args, **kwargs)

    return after


class _GuardedCursor:
    connection: Any

    def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002 - psycopg2's name for it
        guard: Any = guard_of(self.connection)
        if guard is None:
            self._execute(query, vars)
        else:
            guard.execute(self._execute, query, vars)

    def executemany(self, query: Any, rows: Any) -> None:
        guard: Any = guard_of(self.connection)
        if guard is None:
            super().executemany(query, rows)  # type: ignore[misc]
        else:
            guard.execute(super().executemany, query, rows)  # type: ignore[misc]

    def _execute(self, query: Any, values: Any) -> None:
        super().execute(query, values)  # type: ignore[misc]


@cache
def _guarded_cursor(base: Any) -> Any:
    return base if issubclass(base, _GuardedCursor) else type(base.__name__, (_GuardedCursor, base), {})


class PrefixingCursor(_GuardedCursor, psycopg2.extensions.cursor):
    """Takes along what is due on its connection."""

    _ahead = b""

    def _execute(self, query: Any, values: Any) -> None:
        connection: Any = self.connection
        if connection.due is None:
            super()._execute(query, values)
            return
        statement = self.mogrify(query, values)  # an error of this one comes before anything is sent
        with connection.turn:
            due = connection.due
            if due is not None and self.name is None and _can_be_prefixed(statement):
                self._ahead = due.text
                try:
                    connection.send_due(due, partial(super()._execute, values=None), statement)
                    return
                except psycopg2.Error as error:
                    if not connection.undo_statement(due, error):
                        raise
                self._ahead = b""
            connection.catch_up()
        super()._execute(query, values)

    @property
    def query(self) -> bytes | None:
        """The last statement as it was sent, without what went ahead of it."""
        sent = super().query
        return None if sent is None else sent.removeprefix(self._ahead)

    callproc = _after_flush(psycopg2.extensions.cursor.callproc)
    copy_expert = _after_flush(psycopg2.extensions.cursor.copy_expert)
    copy_from = _after_flush(psycopg2.extensions.cursor.copy_from)
    copy_to = _after_flush(psycopg2.extensions.cursor.copy_to)
    executemany: Any = _after_flush(_GuardedCursor.executemany)


def _can_be_prefixed(statement: bytes) -> bool:
    # Not if a comment comes first, since it may be a hint to the planner, or that is all and psycopg2 would complain.
    return statement[:80].lstrip()[:1].isalpha()


class NamedCursor(PrefixingCursor):
    """One on the server, where fetching rows runs the functions of its query."""

    fetchone = _after_flush(psycopg2.extensions.cursor.fetchone)
    fetchmany = _after_flush(psycopg2.extensions.cursor.fetchmany)
    fetchall = _after_flush(psycopg2.extensions.cursor.fetchall)
    scroll = _after_flush(psycopg2.extensions.cursor.scroll)
    __next__ = _after_flush(psycopg2.extensions.cursor.__next__)
