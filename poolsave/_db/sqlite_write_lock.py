"""Measures how long the caller's own SQLite connections hold the write lock of their files.

A worker takes that lock with the first query of its transaction and releases it after COMMIT, while all others wait.
The lock's share of the work limits the gain of a pool. `_auto/sampling.py` measures it before a pool is started.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from .connections import open_sqlite_files

ENDS = ("_commit", "_rollback")
"""Methods by which Django ends a transaction."""


class WriteLockTimer:
    """Adds up the seconds of transactions, and of writing statements outside of them."""

    def __init__(self) -> None:
        self.held = 0.0
        self._since: float | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Measure on the SQLite files that this thread has open now."""
        with ExitStack() as stack:
            for connection in open_sqlite_files():
                stack.enter_context(self._watched(connection))
            yield
        self._since = None

    @contextmanager
    def _watched(self, connection: Any) -> Iterator[None]:
        # Runs can be nested, and other code may have replaced the same methods.
        before = {name: vars(connection)[name] for name in ENDS if name in vars(connection)}
        note = self._watch(connection)
        try:
            yield
        finally:
            connection.execute_wrappers.remove(note)
            for name in ENDS:
                if name in before:
                    setattr(connection, name, before[name])
                else:
                    vars(connection).pop(name, None)

    def _watch(self, connection: Any) -> Callable[..., Any]:
        def note(execute: Callable[..., Any], sql: Any, *more: Any) -> Any:
            if not connection.in_atomic_block:
                return execute(sql, *more) if _only_reads(sql) else self._timed(execute, sql, *more)
            # Here BEGIN was sent earlier; in a worker it is sent with this first query.
            if self._since is None:
                self._since = time.perf_counter()
            return execute(sql, *more)

        connection.execute_wrappers.append(note)
        for name in ENDS:
            setattr(connection, name, partial(self._ended, getattr(connection, name)))
        return note

    def _timed(self, execute: Callable[..., Any], *query: Any) -> Any:
        started = time.perf_counter()
        try:
            return execute(*query)
        finally:
            self.held += time.perf_counter() - started

    def _ended(self, end: Callable[[], Any]) -> Any:
        try:
            return end()
        finally:
            if self._since is not None:
                self.held += time.perf_counter() - self._since
                self._since = None


def _only_reads(sql: Any) -> bool:
    return isinstance(sql, str) and sql.lstrip()[:6].upper() in ("SELECT", "PRAGMA", "BEGIN")
