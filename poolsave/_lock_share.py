"""How long the caller's own SQLite connections hold the one write lock of their files.

A worker takes that lock with the first query of its transaction and gives it back after its COMMIT, while all others
wait. What part of the work that is says how much a pool can gain, before one is started.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ._connections import open_sqlite_files

__all__ = ["LockClock"]


class LockClock:
    """Adds up the seconds inside transactions, and statements outside of them that write."""

    def __init__(self) -> None:
        self.held = 0.0
        self._since: float | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the SQLite files that this thread has open by now."""
        watched = [(connection, self._watch(connection)) for connection in open_sqlite_files()]
        try:
            yield
        finally:
            self._since = None
            for connection, note in watched:
                connection.execute_wrappers.remove(note)
                del connection._commit, connection._rollback

    def _watch(self, connection: Any) -> Callable[..., Any]:
        def note(execute: Callable[..., Any], sql: Any, *more: Any) -> Any:
            if not connection.in_atomic_block:
                return execute(sql, *more) if _only_reads(sql) else self._timed(execute, sql, *more)
            # The BEGIN itself came before the block: in a worker it waits for this first query.
            if self._since is None:
                self._since = time.perf_counter()
            return execute(sql, *more)

        connection.execute_wrappers.append(note)
        connection._commit = lambda: self._ended(type(connection)._commit, connection)
        connection._rollback = lambda: self._ended(type(connection)._rollback, connection)
        return note

    def _timed(self, execute: Callable[..., Any], *query: Any) -> Any:
        began = time.perf_counter()
        try:
            return execute(*query)
        finally:
            self.held += time.perf_counter() - began

    def _ended(self, end: Callable[[Any], Any], connection: Any) -> Any:
        try:
            return end(connection)
        finally:
            if self._since is not None:
                self.held += time.perf_counter() - self._since
                self._since = None


def _only_reads(sql: Any) -> bool:
    return isinstance(sql, str) and sql.lstrip()[:6].upper() in ("SELECT", "PRAGMA", "BEGIN")
