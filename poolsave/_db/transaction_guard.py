"""Keeps a function from ending its transaction past Django, and notices if it was ended all the same.

A raw COMMIT, a driver's `commit()`, a driver's own context manager or a new connection end the transaction that Django
believes to be in. Afterwards an exception does not undo what came before, and a COMMIT does not save it. What can be
seen before it is sent is refused, as Django refuses `connection.commit()`, so that nothing is lost. The rest is noticed
when the function has ended, and its object is LOST.

    begin_on -> guard.arm() -> function -> driver -> check_statement(), check_end() -> guard.disarm() -> commit_on

Each driver has a subclass in the module of its name, which knows where all statements pass and what tells that a
transaction is open. None of them asks the server anything.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from django.db import connections
from django.db.transaction import TransactionManagementError

from .transaction_ends import ends_transaction, text_of

_armed: dict[int, TransactionGuard] = {}
"""By the id of the driver's connection, which the guard keeps alive."""


def guard_of(raw: Any) -> TransactionGuard | None:
    """The guard of a driver's connection, while a function runs inside a transaction of it."""
    return _armed.get(id(raw))


def check_end(raw: Any, name: str) -> None:
    """Refuse a call of the driver that would end the transaction in which a function runs.

    Raises:
        TransactionManagementError: naming it.
    """
    guard = guard_of(raw)
    if guard is not None:
        guard.refuse(name)


class TransactionGuard:
    """Watches over one transaction, from its begin to just before its end."""

    ends: Callable[[str], bool] = staticmethod(ends_transaction)

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.raw = connection.connection
        self.ended = False
        """The transaction was ended past Django: what it held is in the database or is not."""
        self.rolled_back = False
        """The server has ended it with an error, so that nothing of it is left."""
        self._outer: TransactionGuard | None = None
        self._connect: Any = None

    def arm(self) -> None:
        """From now on a function may run."""
        self._outer = _armed.get(id(self.raw))
        _armed[id(self.raw)] = self
        self._connect = vars(self.connection).get("connect")
        self.connection.connect = partial(self.refuse, "connect()")

    def disarm(self) -> bool:
        """The function has ended; says whether its transaction was ended past Django."""
        ended = self.has_ended() or connections[self.connection.alias] is not self.connection
        if self._connect is None:
            vars(self.connection).pop("connect", None)
        else:
            self.connection.connect = self._connect
        if self._outer is None:
            _armed.pop(id(self.raw), None)
        else:  # an object of a run inside another object's transaction
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
        """Whether Django has another connection by now."""
        return self.connection.connection is not self.raw

    def check_statement(self, statement: Any) -> None:
        """Refuse to send what would end the transaction, or what would come after its end.

        Raises:
            TransactionManagementError: naming it.
        """
        if self.rolled_back:
            raise TransactionManagementError(
                f"the database has rolled back the transaction of this object on {self.connection.alias!r} with an "
                "error, so that nothing can follow in it: let that error end the function"
            )
        text = text_of(statement)
        if self.ends(text):
            self.refuse(" ".join(text.split())[:40])

    def note_rollback(self) -> None:
        """The server has ended the transaction with an error, which the function may catch.

        What is sent afterwards would be in no transaction, or in another one.
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
        """After `disarm` has said so: keep nothing of the connection, nor of one that it was replaced by.

        A connection that is still referenced would keep its locks, for which another try would wait for ever.
        """
        if connections[self.connection.alias] is not self.connection:
            connections[self.connection.alias].close()
            connections[self.connection.alias] = self.connection
        if self.was_replaced():
            with suppress(Exception):  # each driver has its own for a connection that is closed already
                self.raw.close()
