"""A savepoint for each object of a chunk, with one question to the server for each and not two.

Django's `atomic()` sets a savepoint and releases it. Here the one of the object before is released together with the
setting of the next, and the last one by the COMMIT, which is a good part of the time that a small `save()` takes.
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
        begun: list[Any] = []
        try:
            for connection in self._connections:
                self._renew(connection)
                connection.savepoint_ids.append(self._name)
                begun.append(connection)
            yield
        except BaseException:
            for connection in begun:
                self._undo(connection)
            raise
        finally:
            for connection in begun:
                connection.savepoint_ids.remove(self._name)

    def _renew(self, connection: Any) -> None:
        if connection.alias not in self._set:
            connection._savepoint(self._name)
            self._set.add(connection.alias)
        elif connection.vendor == "mysql":  # which forgets the old one of that name
            connection._savepoint(self._name)
        elif connection.vendor == "postgresql" and _takes_two_statements(connection):
            with connection.cursor() as cursor:
                cursor.execute(f"RELEASE SAVEPOINT {self._name}; SAVEPOINT {self._name}")
        else:
            connection._savepoint_commit(self._name)
            connection._savepoint(self._name)

    def _undo(self, connection: Any) -> None:
        if connection.closed_in_transaction:  # the server rolls all of it back, and needs_rollback is true by now
            return
        connection.needs_rollback = False
        try:
            connection.savepoint_rollback(self._name)
        except Error:  # the connection is gone, or the server has ended the transaction: the chunk has to be undone
            connection.needs_rollback = True


def _takes_two_statements(connection: Any) -> bool:
    # psycopg 3 prepares what it has seen several times, if it is asked to, and cannot prepare two at once.
    return getattr(connection.connection, "prepare_threshold", None) is None
