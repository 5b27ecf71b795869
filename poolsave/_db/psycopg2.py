"""Connections of psycopg2 on which something can go ahead of the next statement, in the same question to the server.

psycopg2 sends what it is given as one simple query: several statements take one round trip, and the answer is that of
the last. Whatever is sent, by Django or past it, goes through the methods below, so that nothing overtakes what is due.
One thing cannot be seen: a cursor or large object that somebody makes without asking the connection for it
(`psycopg2.extensions.cursor(connection)`), and libpq itself used by `pgconn_ptr`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import RLock
from typing import Any, ParamSpec, TypeVar

import psycopg2
import psycopg2.extensions

P = ParamSpec("P")
R = TypeVar("R")


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


class PrefixingCursor(psycopg2.extensions.cursor):
    """Takes along what is due on its connection."""

    _ahead = b""

    def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002 - psycopg2's name for it
        connection: Any = self.connection
        if connection.due is None:
            super().execute(query, vars)
            return
        statement = self.mogrify(query, vars)  # an error of this one comes before anything is sent
        with connection.turn:
            due = connection.due
            if due is not None and self.name is None and _can_be_prefixed(statement):
                self._ahead = due.text
                try:
                    connection.send_due(due, super().execute, statement)
                    return
                except psycopg2.Error as error:
                    if not connection.undo_statement(due, error):
                        raise
                self._ahead = b""
            connection.catch_up()
        super().execute(query, vars)

    @property
    def query(self) -> bytes | None:
        """The last statement as it was sent, without what went ahead of it."""
        sent = super().query
        return None if sent is None else sent.removeprefix(self._ahead)

    callproc = _after_flush(psycopg2.extensions.cursor.callproc)
    copy_expert = _after_flush(psycopg2.extensions.cursor.copy_expert)
    copy_from = _after_flush(psycopg2.extensions.cursor.copy_from)
    copy_to = _after_flush(psycopg2.extensions.cursor.copy_to)
    executemany = _after_flush(psycopg2.extensions.cursor.executemany)


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
