"""A savepoint for each object of a chunk, with one question to the server for each and not two.

Django's `atomic()` sets a savepoint and releases it. Here the one of the object before is released together with the
setting of the next, where a server takes two statements at once, which is a good part of the time of a small `save()`.
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
        self.aliases = tuple(aliases)
        self._connections: list[Any] = [connections[alias] for alias in aliases]
        self._set: set[str] = set()
        self._name = f"poolsave_{next(_numbers)}"  # its own: a run may be nested in an object of another

    @contextmanager
    def around_object(self) -> Iterator[None]:
        """Undo what is done within if it raises, on every alias.

        Where a server cannot, `needs_rollback` is true afterwards, as it is with `atomic()`.
        """
        mark = f"{self._name}_{next(_numbers)}"
        begun: list[Any] = []
        try:
            for connection in self._connections:
                self._renew(connection)
                connection.savepoint_ids.append(mark)
                begun.append(connection)
            yield
        except BaseException:
            for connection in begun:
                self._undo(connection, mark)
            raise
        finally:
            for connection in begun:
                connection.savepoint_ids.remove(mark)

    def release(self) -> None:
        """Release the last one, which succeeds only in the transaction in which the first one was set.

        Raises:
            Error: if it is another one: a function has ended that past Django, or the server did, and what was saved in
                it may be gone.
        """
        for connection in self._connections:
            if connection.alias in self._set:
                connection._savepoint_commit(self._name)

    def _renew(self, connection: Any) -> None:
        if connection.alias not in self._set:
            connection._savepoint(self._name)
            self._set.add(connection.alias)
            return
        if connection.vendor == "postgresql" and _takes_two_statements(connection):
            release, create = connection.ops.savepoint_commit_sql, connection.ops.savepoint_create_sql
            with connection.cursor() as cursor:
                cursor.execute(f"{release(self._name)}; {create(self._name)}")
        else:
            connection._savepoint_commit(self._name)
            connection._savepoint(self._name)

    def _undo(self, connection: Any, mark: str) -> None:
        if connection.closed_in_transaction:  # the server rolls all of it back, and needs_rollback is true by now
            return
        connection.needs_rollback = False
        try:
            connection._savepoint_rollback(self._name)
            connection.run_on_commit = [entry for entry in connection.run_on_commit if mark not in entry[0]]
        except Error:  # the connection is gone, or the server has ended the transaction: the chunk has to be undone
            connection.needs_rollback = True


def _takes_two_statements(connection: Any) -> bool:
    # psycopg 3 prepares what it has seen several times, if it is asked to, and cannot prepare two at once.
    return getattr(connection.connection, "prepare_threshold", None) is None
