"""A savepoint for each object of a chunk, with at most one question to the server for each, and none where that can be.

Django's `atomic()` sets a savepoint and releases it. Here the one of the object before is released together with the
setting of the next, where a server takes two statements at once, which is a good part of the time of a small `save()`.
On connections that workers opened by psycopg2, both go along with the first statement of the object, if there is any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

from django.db import Error, connections

__all__ = ["Savepoints"]

_numbers = count()


class Savepoints:
    """Those of one transaction, on all its aliases. No block of `atomic()` is around an object, but what Django keeps
    for one (the callbacks that go with a savepoint, and whether only a rollback is possible) is kept as it would be."""

    def __init__(self, aliases: Sequence[str]) -> None:
        self.connections: list[Any] = [connections[alias] for alias in aliases]
        self._last = [_Last(connection) for connection in self.connections]

    @contextmanager
    def around_object(self) -> Iterator[None]:
        """Undo what is done within if it raises, on every alias.

        Where a server cannot, `needs_rollback` is true afterwards, as it is with `atomic()`.
        """
        # A name for each: if the server refused the text that its savepoint went along with, to roll back to that one
        # fails, and does not lead to the end of an object before, in a transaction that cannot go on.
        name = f"poolsave_{next(_numbers)}"
        begun = 0
        try:
            for last in self._last:
                last.begin(name)
                begun += 1
            yield
        except BaseException:
            for last in self._last[:begun]:
                last.undo(name)
            raise
        finally:
            for last in self._last:
                last.end(name)

    def release(self) -> None:
        """Release the last one, which succeeds only in the transaction in which the first one was set.

        Raises:
            Error: if it is another one: a function has ended that past Django, or the server did, and what was saved in
                it may be gone.
        """
        for last in self._last:
            last.release()


class _Last:
    """The last savepoint that was set on one connection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._name: str | None = None
        self._joined = connection.vendor == "postgresql" and _takes_two_statements(connection)
        # What workers opened by psycopg2 is of the class in _psycopg2, which is there only if the driver is.
        self._ahead: Any = connection.connection if hasattr(connection.connection, "send_ahead") else None
        self._due: Any = None

    def begin(self, name: str) -> None:
        """Set it for an object, or have it set before anything else is sent."""
        self._connection.savepoint_ids.append(name)
        if self._name is not None and self._joined:
            self._renew(name)
            return
        if self._name is not None:
            self._connection._savepoint_commit(self._name)
        self._connection._savepoint(name)
        self._name = name

    def _renew(self, name: str) -> None:
        both = f"RELEASE SAVEPOINT {self._name}; SAVEPOINT {name}"
        if self._ahead is not None:
            self._connection.validate_no_broken_transaction()  # as every question asks
            self._due = self._ahead.send_ahead(both)
        if self._due is None:
            with self._connection.cursor() as cursor:
                cursor.execute(both)
            self._name = name

    def undo(self, name: str) -> None:
        """Take back what the object did."""
        self._settle(name)
        connection = self._connection
        if connection.closed_in_transaction:  # the server rolls all of it back, and needs_rollback is true by now
            return
        connection.needs_rollback = False
        try:
            if self._name == name:
                connection._savepoint_rollback(name)
            connection.run_on_commit = [entry for entry in connection.run_on_commit if name not in entry[0]]
        except Error:  # the connection is gone, or the server has ended the transaction: the chunk has to be undone
            connection.needs_rollback = True

    def end(self, name: str) -> None:
        """Leave nothing of the object behind but its savepoint, if there is one."""
        self._settle(name)
        if name in self._connection.savepoint_ids:
            self._connection.savepoint_ids.remove(name)

    def _settle(self, name: str) -> None:
        if self._due is not None and self._due.begun:
            self._name = name
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
