"""Refuses to end a function's transaction past Django, and notices if it was ended nevertheless.

A raw COMMIT, a driver's `commit()`, a driver's own context manager or a new connection end the transaction that Django
takes for open. Afterwards an exception does not undo what came before, and a COMMIT does not save it. A guard refuses
what it sees before it is sent, as Django refuses `connection.commit()`, so that nothing is lost. It notices the rest
when the function has returned, and the object is LOST.

    begin_on -> guard.arm() -> function -> driver -> check_statement(), check_end() -> guard.disarm() -> commit_on

Each driver has a subclass in the module of its name. It knows which methods every statement passes through, and how the
driver shows that a transaction is open. No guard sends a query.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from django.db import connections
from django.db.transaction import TransactionManagementError

from .transaction_ends import ends_transaction, statement_text

_armed: dict[int, TransactionGuard] = {}
"""The armed guards, by the id of the driver's connection, which the guard keeps alive."""


def guard_of(raw: Any) -> TransactionGuard | None:
    """Give the guard of a driver's connection while a function runs inside its transaction, else None."""
    return _armed.get(id(raw))


def check_end(raw: Any, name: str) -> None:
    """Refuse a method of the driver that would end the transaction in which a function runs.

    Raises:
        TransactionManagementError: naming the statement or method.
    """
    guard = guard_of(raw)
    if guard is not None:
        guard.refuse(name)


class TransactionGuard:
    """Guards one transaction from its BEGIN to just before its COMMIT or ROLLBACK."""

    ends: Callable[[str], bool] = staticmethod(ends_transaction)

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.raw = connection.connection
        self.ended = False
        """The transaction was ended past Django: its work may be in the database or not."""
        self.rolled_back = False
        """The server has rolled it back with an error, so none of its work is left."""
        self._outer: TransactionGuard | None = None
        self._connect: Any = None

    def arm(self) -> None:
        """Begin to guard, right before the function runs."""
        self._outer = _armed.get(id(self.raw))
        _armed[id(self.raw)] = self
        self._connect = vars(self.connection).get("connect")
        self.connection.connect = partial(self.refuse, "connect()")

    def disarm(self) -> bool:
        """Stop guarding after the function has ended; says whether its transaction was ended past Django."""
        ended = self.has_ended() or connections[self.connection.alias] is not self.connection
        if self._connect is None:
            vars(self.connection).pop("connect", None)
        else:
            self.connection.connect = self._connect
        if self._outer is None:
            _armed.pop(id(self.raw), None)
        else:  # this run is inside the transaction of another run's object
            _armed[id(self.raw)] = self._outer
            self._outer.ended |= ended
            self._outer.rolled_back |= self.rolled_back
        return ended

    def has_ended(self) -> bool:
        """Whether the transaction is known to have been ended past Django."""
        if self.was_replaced() or (self.is_over() and not self.rolled_back):
            self.ended = True
        return self.ended

    def is_over(self) -> bool:
        """Whether the driver can tell that the transaction is no longer open."""
        return False

    def was_replaced(self) -> bool:
        """Whether the Django wrapper has another driver connection by now."""
        return self.connection.connection is not self.raw

    def check_statement(self, statement: Any) -> None:
        """Refuse a statement that would end the transaction, or that follows its rollback by the server.

        Raises:
            TransactionManagementError: naming the statement or method.
        """
        if self.rolled_back:
            raise TransactionManagementError(
                f"the database has rolled back the transaction of this object on {self.connection.alias!r} with an "
                "error, so that nothing can follow in it: let that error end the function"
            )
        text = statement_text(statement)
        if self.ends(text):
            self.refuse(" ".join(text.split())[:40])

    def note_rollback(self) -> None:
        """Record that the server has rolled back the transaction with an error, which the function may catch.

        Later statements would run in no transaction, or in another one.
        """
        self.rolled_back = True
        self.connection.needs_rollback = True

    def refuse(self, what: str, verb: str = "end") -> None:
        """Raise the error that says what to do."""
        raise TransactionManagementError(
            f"{what!r} would {verb} the transaction of this object on {self.connection.alias!r} before its end: run it "
            "apart, or use transaction=None"
        )

    def abandon(self) -> None:
        """Close this connection and its replacement, after `disarm` has returned true.

        An open connection would keep its locks, and another try would wait for them for ever.
        """
        if connections[self.connection.alias] is not self.connection:
            connections[self.connection.alias].close()
            connections[self.connection.alias] = self.connection
        if self.was_replaced():
            with suppress(Exception):  # each driver has its own for a connection that is closed already
                self.raw.close()
