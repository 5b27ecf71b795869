"""psycopg2: sends a prefix in the round trip of the next statement, and guards transactions.

psycopg2 sends its text as one simple query: several statements take one round trip, and the answer is that of the
last. Whatever is sent, by Django or past it, goes through the methods below, so that no statement overtakes the prefix.
Two things bypass them: a cursor or large object that is not made by the connection's own methods
(`psycopg2.extensions.cursor(connection)`), and libpq used through `pgconn_ptr`.

    savepoints.py -> prefix_next() -> pending -> next statement: send_pending() -> server
                                              -> nothing follows: discard(), or flush() sends it alone
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import RLock
from typing import Any, ParamSpec, TypeVar

import psycopg2
import psycopg2.extensions
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_INERROR, TRANSACTION_STATUS_UNKNOWN

from .error_codes import connection_lost
from .transaction_guard import TransactionGuard, armed_guard_of, guard_of, guarded_cursor, refusing

P = ParamSpec("P")
R = TypeVar("R")


class Psycopg2Guard(TransactionGuard):
    """Checks statements of cursors: all of them on a worker's connection, else those of the connection's own class."""

    _was_open = False

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self._factory = self.raw.cursor_factory

    def arm(self) -> None:
        super().arm()
        if not isinstance(self.raw, PrefixingConnection):
            self.raw.cursor_factory = guarded_cursor(self._factory or psycopg2.extensions.cursor, _GuardedCursor)

    def disarm(self) -> None:
        if not isinstance(self.raw, PrefixingConnection):
            self.raw.cursor_factory = self._factory
        super().disarm()

    def is_over(self) -> bool:
        return self._was_open and self._is_idle()

    def _is_idle(self) -> bool:
        return not self.raw.closed and bool(self.raw.get_transaction_status() == TRANSACTION_STATUS_IDLE)

    def has_transaction(self) -> bool:
        status = self.connection.connection.get_transaction_status()
        return status not in (TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_UNKNOWN)

    def has_aborted(self) -> bool:
        # Unknown for a closed connection, on which no COMMIT would be sent.
        return self.raw.get_transaction_status() in (TRANSACTION_STATUS_INERROR, TRANSACTION_STATUS_UNKNOWN)

    def execute(self, execute: Callable[..., None], query: Any, *values: Any) -> None:
        """Check the statement, and note before and after it whether a transaction is open."""
        self.check_statement(query)
        self.has_ended()
        opened = True
        try:
            execute(query, *values)
        except psycopg2.Error as error:
            # The connection may have broken as BEGIN was sent: libpq then calls it open and idle.
            opened = not connection_lost(error)
            raise
        finally:
            self._was_open |= opened
            self.has_ended()


@dataclass(slots=True)
class PendingPrefix:
    """Statements that have to reach the server before any other."""

    text: bytes
    undo: bytes
    """A statement that rolls back to right after them."""
    maybe_sent: bool = False
    """Whether they may have reached the server. False: nothing has been sent since they became pending."""


class PrefixingConnection(psycopg2.extensions.connection):
    """Holds a prefix until it is sent or discarded."""

    pending: PendingPrefix | None = None
    sees_all = True
    """False once a cursor or large object exists that bypasses this class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prefix_lock = RLock()  # the user's threads may share this connection; the first to send takes the prefix

    def prefix_next(self, text: str, undo: str) -> PendingPrefix | None:
        """Send `text` in front of the next statement. Gives None once raw cursors exist that bypass this class.

        `undo` rolls back to right after `text`.
        """
        if self.sees_all:
            # On a line of its own, so that the server's messages do not quote it.
            self.pending = PendingPrefix(text.encode() + b";\n", undo.encode())
            return self.pending
        return None

    def discard(self) -> None:
        """Do not send the pending prefix."""
        self.pending = None

    def flush(self) -> None:
        """Send the pending prefix by itself."""
        if self.pending is None:
            return
        with self.prefix_lock, super().cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
            if self.pending is not None:  # no other thread has sent it in the meantime
                self.send_pending(self.pending, cursor.execute, b"")

    def send_pending(self, pending: PendingPrefix, execute: Callable[[bytes], None], statement: bytes) -> None:
        """Send the prefix and the statement. The prefix stays pending if that fails.

        A function may catch the error and go on, although its transaction may be another one by then. The prefix fails
        in that one too.
        """
        pending.maybe_sent = True  # first, since an exception such as a time-out may come at any time
        execute(pending.text + statement)
        self.pending = None

    def undo_statement(self, pending: PendingPrefix, error: psycopg2.Error) -> bool:
        """Undo a failed statement; says whether it is to be sent once more, by itself.

        The server gives the position of a mistake in the text, and counts the prefix. It looks for such mistakes before
        it runs a statement, so it finds them again. Not handled: text that it cannot parse. None of it has run, and the
        chunk runs again object by object.
        """
        if error.diag.statement_position is None:
            return False
        try:
            with super().cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
                cursor.execute(pending.undo)
        except psycopg2.Error:
            return False
        self.pending = None
        return True

    def cursor(self, name: Any = None, cursor_factory: Any = None, *args: Any, **kwargs: Any) -> Any:
        factory = cursor_factory or self.cursor_factory
        if factory is not PrefixingCursor:
            self._stop_prefixing()
        elif name is not None:
            factory = NamedCursor
        return super().cursor(name, factory, *args, **kwargs)

    def lobject(self, *args: Any, **kwargs: Any) -> Any:
        self._stop_prefixing()
        return super().lobject(*args, **kwargs)

    commit = refusing(psycopg2.extensions.connection.commit)
    rollback = refusing(psycopg2.extensions.connection.rollback)
    set_isolation_level = refusing(psycopg2.extensions.connection.set_isolation_level)

    def _stop_prefixing(self) -> None:
        # For good, since the last use of the cursor is unknown.
        guard = guard_of(self)
        if guard is not None and guard.buffer is not None:
            guard.buffer.undo("a cursor of psycopg2 was made that poolsave cannot see")
        self.flush()
        self.sees_all = False


def _after_flush(method: Callable[P, R]) -> Callable[P, R]:
    def after(*args: P.args, **kwargs: P.kwargs) -> R:
        cursor: Any = args[0]
        cursor.connection.flush()
        return method(*args, **kwargs)

    return after


def _after_buffer(method: Callable[P, R]) -> Callable[P, R]:
    def after(*args: P.args, **kwargs: P.kwargs) -> R:
        cursor: Any = args[0]
        guard = guard_of(cursor.connection)
        if guard is not None and guard.buffer is not None:
            guard.buffer.before_statement(None)
        return method(*args, **kwargs)

    return after


class _GuardedCursor:
    connection: Any

    def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002 - psycopg2's name for it
        self._guarded(self._execute, query, vars)

    def executemany(self, query: Any, rows: Any) -> None:
        self._guarded(super().executemany, query, rows)  # type: ignore[misc]

    def _guarded(self, execute: Callable[..., None], query: Any, values: Any) -> None:
        guard: Any = armed_guard_of(self.connection)
        if guard is None:
            execute(query, values)
        else:
            guard.execute(execute, query, values)

    def _execute(self, query: Any, values: Any) -> None:
        super().execute(query, values)  # type: ignore[misc]


class PrefixingCursor(_GuardedCursor, psycopg2.extensions.cursor):
    """Sends its connection's pending prefix with its next statement."""

    _prefix = b""

    def _execute(self, query: Any, values: Any) -> None:
        connection: Any = self.connection
        if connection.pending is None:
            super()._execute(query, values)
            return
        statement = self.mogrify(query, values)  # if this fails, nothing has been sent
        with connection.prefix_lock:
            pending = connection.pending
            if pending is not None and self.name is None and _can_be_prefixed(statement):
                self._prefix = pending.text
                try:
                    connection.send_pending(pending, partial(super()._execute, values=None), statement)
                    return
                except psycopg2.Error as error:
                    if not connection.undo_statement(pending, error):
                        raise
                self._prefix = b""
            connection.flush()
        super()._execute(query, values)

    @property
    def query(self) -> bytes | None:
        """The last statement as it was sent, without the prefix."""
        sent = super().query
        return None if sent is None else sent.removeprefix(self._prefix)

    callproc = _after_buffer(_after_flush(psycopg2.extensions.cursor.callproc))
    copy_expert = _after_buffer(_after_flush(psycopg2.extensions.cursor.copy_expert))
    copy_from = _after_buffer(_after_flush(psycopg2.extensions.cursor.copy_from))
    copy_to = _after_buffer(_after_flush(psycopg2.extensions.cursor.copy_to))
    executemany: Any = _after_flush(_GuardedCursor.executemany)


def _can_be_prefixed(statement: bytes) -> bool:
    # Not after a comment: it may be a hint to the planner, or be all there is, which psycopg2 refuses.
    return statement[:80].lstrip()[:1].isalpha()


class NamedCursor(PrefixingCursor):
    """A cursor on the server: fetching its rows runs the functions in its query."""

    fetchone = _after_flush(psycopg2.extensions.cursor.fetchone)
    fetchmany = _after_flush(psycopg2.extensions.cursor.fetchmany)
    fetchall = _after_flush(psycopg2.extensions.cursor.fetchall)
    scroll = _after_flush(psycopg2.extensions.cursor.scroll)
    __next__ = _after_flush(psycopg2.extensions.cursor.__next__)
