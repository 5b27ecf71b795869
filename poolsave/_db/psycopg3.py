"""psycopg 3: refuses what ends an object's transaction, notices that it has ended, and saves round trips at both ends.

Every answer of the server passes through `Connection.wait`, after which the driver knows whether a transaction is open.
The driver itself sends BEGIN, and waits, before the first statement of a transaction. Here that statement brings its
BEGIN along, if it is text that the client has composed: the server takes several of these at once. The last statement,
where poolsave adds one, brings COMMIT along.
"""

from __future__ import annotations

from functools import cache
from threading import get_ident
from typing import Any

from psycopg import ClientCursor, Error, generators
from psycopg.errors import error_from_result

from .error_codes import connection_lost
from .transaction_guard import TransactionGuard, armed_guard_of, guard_of, guarded_cursor, refusing

NO_PIPELINE = 0
"""libpq's PQ_PIPELINE_OFF."""
IDLE, OPEN, INERROR, UNKNOWN = 0, 2, 3, 4
"""libpq's PQTRANS_IDLE: no transaction is open; PQTRANS_INTRANS: one is; PQTRANS_INERROR: it can only be rolled back;
PQTRANS_UNKNOWN: the connection is closed."""
FAILED = 7
"""libpq's PGRES_FATAL_ERROR."""


class Psycopg3Guard(TransactionGuard):
    """Puts a class of its own in place of the connection's while it is armed."""

    _was_open = False
    brings_begin = False
    """Whether the statement that is sent now begins with BEGIN, so that the driver need not send one."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self._class = type(self.raw)

    def arm(self) -> None:
        super().arm()
        # An outermost atomic() has only turned autocommit off by now: psycopg sends BEGIN with the first statement.
        self._was_open = self.raw.pgconn.transaction_status != IDLE
        self.raw.__class__ = _guarded_connection(self._class)  # type: ignore[arg-type]  # mypy calls types unhashable

    def disarm(self) -> None:
        self.raw.__class__ = self._class
        super().disarm()
        if self.last is not None:
            self.raw.commit = self._commit

    def uninstall(self) -> None:
        if vars(self.raw).get("commit") == self._commit:  # else it is the project's own
            del self.raw.commit
        super().uninstall()

    def takes_last(self) -> bool:
        raw = self.raw
        is_plain = self.buffer is None and raw.pgconn.pipeline_status == NO_PIPELINE and "commit" not in vars(raw)
        return is_plain and bool(raw.pgconn.transaction_status == OPEN)

    def _commit(self) -> None:
        """Send the last statement and COMMIT."""
        raw, last = self.raw, self.last
        del raw.commit
        assert last is not None
        with raw.lock:
            results = raw.wait(_sent(raw.pgconn, f"{last.text};\nCOMMIT".encode("ascii")))
        if results[-1].status == FAILED:
            error = error_from_result(results[-1], encoding=raw.info.encoding)
            # The server holds answers back to the end: one that has crashed may have committed, and answered nothing.
            last.has_failed = len(results) == 1 and not connection_lost(error)
            raise error

    def is_over(self) -> bool:
        return self._was_open and bool(self.raw.pgconn.transaction_status == IDLE)

    def has_transaction(self) -> bool:
        return self.connection.connection.pgconn.transaction_status not in (IDLE, UNKNOWN)

    def has_aborted(self) -> bool:
        return self.raw.pgconn.transaction_status in (INERROR, UNKNOWN)

    def note_status(self) -> None:
        """Note after an answer whether the transaction is open. Without autocommit every statement opens it."""
        if self.raw.pgconn.transaction_status != IDLE:
            self._was_open = True
        elif self._was_open or self.raw.autocommit:
            self.ended = True

    def can_bring_begin(self, cursor: Any, query: Any) -> bool:
        """Whether the statement is the first one of its transaction, and may stand behind BEGIN in one text."""
        raw = self.raw
        return (
            raw.pgconn.transaction_status == IDLE
            and not raw.autocommit
            and isinstance(query, str)
            and isinstance(cursor, ClientCursor)
            and query[:80].lstrip()[:1].isalpha()  # not a comment, which may be a hint to the planner
            and raw.pgconn.pipeline_status == NO_PIPELINE
        )

    def undo_begin(self) -> None:
        """End a transaction whose first statement had a mistake, before anything has run in it."""
        if self.raw.pgconn.transaction_status == INERROR:
            self._was_open = False  # this is not its end
            self._class.rollback(self.raw)

    def watch_cursor(self, cursor: Any) -> None:
        cursor.__class__ = _guarded(type(cursor))


def _sent(pgconn: Any, text: bytes) -> Any:
    pgconn.send_query(text)
    return (yield from generators.execute(pgconn))


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
            if guard.buffer is not None and get_ident() not in guard.seen:
                guard.buffer.before_unseen()
            try:
                return super().wait(*args, **kwargs)
            finally:
                guard.note_status()

        def _start_query(self) -> Any:
            guard: Any = guard_of(self)
            if not guard.brings_begin:
                yield from super()._start_query()

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
        guard = armed_guard_of(self.connection)
        if guard is None:
            return super().execute(query, *args, **kwargs)  # type: ignore[misc]
        guard.check_statement(query)
        return _seen(guard, self._execute, guard, query, *args, **kwargs)

    def _execute(self, guard: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        execute = super().execute  # type: ignore[misc]
        if kwargs or not guard.can_bring_begin(self, query):
            return execute(query, *args, **kwargs)
        begin = self.connection._get_tx_start_command() + b";\n"  # on a line of its own: messages do not quote it
        guard.brings_begin = True
        try:
            execute(begin.decode() + query, *args)
        except Error as error:
            # The server gives the position of a mistake in the text, and counts BEGIN. It looks for such mistakes
            # before it runs a statement, so it finds them again.
            if error.diag.statement_position is None:
                raise
            guard.brings_begin = False
            guard.undo_begin()
        else:
            self.nextset()  # type: ignore[attr-defined]  # past the result of BEGIN
            return self
        finally:
            guard.brings_begin = False
            self._forget(begin)
        return execute(query, *args)

    def _forget(self, begin: bytes) -> None:
        """Show the statement without BEGIN in the log of Django's queries, which takes it from the cursor."""
        sent = self._query  # type: ignore[attr-defined]
        if sent is not None:
            sent.query = sent.query.removeprefix(begin)

    def executemany(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        return self._after_check(super().executemany, query, *args, **kwargs)  # type: ignore[misc]

    def copy(self, *args: Any, **kwargs: Any) -> Any:
        self._send_buffer()
        return super().copy(*args, **kwargs)  # type: ignore[misc]

    def stream(self, *args: Any, **kwargs: Any) -> Any:
        self._send_buffer()
        return super().stream(*args, **kwargs)  # type: ignore[misc]

    def _after_check(self, method: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        guard = armed_guard_of(self.connection)
        if guard is None:
            return method(query, *args, **kwargs)
        guard.check_statement(query)
        return _seen(guard, method, query, *args, **kwargs)

    def _send_buffer(self) -> None:
        guard = guard_of(self.connection)
        if guard is not None and guard.buffer is not None:
            guard.buffer.before_statement(None)


def _seen(guard: TransactionGuard, method: Any, *args: Any, **kwargs: Any) -> Any:
    thread = get_ident()
    if thread in guard.seen:
        return method(*args, **kwargs)
    guard.seen.add(thread)
    try:
        return method(*args, **kwargs)
    finally:
        guard.seen.discard(thread)


def _fetch(name: str) -> Any:
    def fetch(self: Any, *args: Any, **kwargs: Any) -> Any:
        method, guard = getattr(super(_GuardedServerCursor, self), name), guard_of(self.connection)
        return method(*args, **kwargs) if guard is None else _seen(guard, method, *args, **kwargs)

    return fetch


class _GuardedServerCursor(_GuardedCursor):
    """Asks the server for more of what `execute` has shown to the guard."""

    fetchone, fetchmany, fetchall = _fetch("fetchone"), _fetch("fetchmany"), _fetch("fetchall")
    __next__, scroll, close = _fetch("__next__"), _fetch("scroll"), _fetch("close")
