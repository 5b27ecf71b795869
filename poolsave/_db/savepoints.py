"""A savepoint for each object of a chunk, with at most one question to the server for each, and none where that can be.

Django's `atomic()` sets a savepoint and releases it. Here the one of the object before is released together with the
setting of the next, where a server takes two statements at once, which is a good part of the time of a small `save()`.
On connections that workers opened by psycopg2, both go along with the first statement of the object, if there is any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, TypeVar

from django.db import Error

from .transactions import check_can_commit

R = TypeVar("R")

_numbers = count()


class Savepoints:
    """Those of one transaction, on all its aliases. No block of `atomic()` is around an object, but what Django keeps
    for one (the callbacks that go with a savepoint, and whether only a rollback is possible) is kept as it would be."""

    def __init__(self, used: Sequence[Any]) -> None:
        """`used`: the connections that the transaction is on."""
        self.connections = used
        self._last = [_ConnectionSavepoint(connection) for connection in used]

    def around(self, call: Callable[[], R]) -> R:
        """Call it, and undo what it did if it raises or could only be rolled back, on every alias.

        Where a server cannot, `needs_rollback` is true afterwards, as it is with `atomic()`.
        """
        mark = f"poolsave_{next(_numbers)}"
        begun = 0
        try:
            for last in self._last:
                last.begin(mark)
                begun += 1
            value = call()
            check_can_commit(self.connections)
            return value
        except BaseException:
            for last in self._last[:begun]:
                last.undo(mark)
            raise
        finally:
            for last in self._last:
                last.end(mark)

    def release(self) -> None:
        """Release the last one, which succeeds only in the transaction in which the first one was set.

        Raises:
            Error: if it is another one: a function has ended that past Django, or the server did, and what was saved in
                it may be gone.
        """
        for last in self._last:
            last.release()


class _ConnectionSavepoint:
    """The last savepoint that was set on one connection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._name: str | None = None
        self._joined = connection.vendor == "postgresql" and _takes_two_statements(connection)
        # What workers opened by psycopg2 is of the class in _psycopg2, which is there only if the driver is.
        self._ahead: Any = connection.connection if hasattr(connection.connection, "send_ahead") else None
        self._due: Any = None

    def begin(self, mark: str) -> None:
        """Set it for an object, or have it set before anything else is sent."""
        self._connection.savepoint_ids.append(mark)
        if self._name is None:
            self._connection._savepoint(mark)
            self._name = mark
        elif self._joined:
            self._renew(mark)
        else:
            self._connection._savepoint_commit(self._name)
            self._connection._savepoint(self._name)

    def _renew(self, mark: str) -> None:
        if self._ahead is not None:
            self._connection.validate_no_broken_transaction()  # as every question asks
            # Under a new name: if the server refuses the text that this goes along with, to roll back to it fails, and
            # does not lead to the end of an object before, in a transaction that cannot go on.
            self._due = self._ahead.send_ahead(f"RELEASE SAVEPOINT {self._name}; SAVEPOINT {mark}")
        if self._due is None:
            with self._connection.cursor() as cursor:  # under the old one, which who prepares statements knows
                cursor.execute(f"RELEASE SAVEPOINT {self._name}; SAVEPOINT {self._name}")

    def undo(self, mark: str) -> None:
        """Take back what the object did."""
        sent = self._due is None or self._due.begun
        self._settle(mark)
        connection = self._connection
        if connection.closed_in_transaction:  # the server rolls all of it back, and needs_rollback is true by now
            return
        connection.needs_rollback = False
        try:
            if sent:
                connection._savepoint_rollback(self._name)
            connection.run_on_commit = [entry for entry in connection.run_on_commit if mark not in entry[0]]
        except Error:  # the connection is gone, or the server has ended the transaction: the chunk has to be undone
            connection.needs_rollback = True

    def end(self, mark: str) -> None:
        """Leave nothing of the object behind but its savepoint, if there is one."""
        self._settle(mark)
        if mark in self._connection.savepoint_ids:
            self._connection.savepoint_ids.remove(mark)

    def _settle(self, mark: str) -> None:
        if self._due is not None and self._due.begun:
            self._name = mark
        self._due = None
        if self._ahead is not None and self._name is not None:  # the first one has sent whatever was due before
            self._ahead.forget()

    def release(self) -> None:
        """Release it."""
        if self._name is not None:
            self._connection._savepoint_commit(self._name)


def _takes_two_statements(connection: Any) -> bool:
    # psycopg 3 prepares what it has seen several times, if it is asked to, and cannot prepare two at once.
    return getattr(connection.connection, "prepare_threshold", None) is None
