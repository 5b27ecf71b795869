"""How long the caller's own SQLite connections hold the one write lock of their files.

A worker takes that lock with the first query of its transaction and gives it back after its COMMIT, while all others
wait. What part of the work that is says how much a pool can gain, before one is started.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from .connections import open_sqlite_files

ENDS = ("_commit", "_rollback")
"""How Django ends a transaction."""


class WriteLockTimer:
    """Adds up the seconds inside transactions, and statements outside of them that write."""

    def __init__(self) -> None:
        self.held = 0.0
        self._since: float | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the SQLite files that this thread has open by now."""
        with ExitStack() as stack:
            for connection in open_sqlite_files():
                stack.enter_context(self._watched(connection))
            yield
        self._since = None

    @contextmanager
    def _watched(self, connection: Any) -> Iterator[None]:
        # Runs can be nested, and others may have put something in the same places.
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
            # The BEGIN itself came before the block: in a worker it waits for this first query.
            if self._since is None:
                self._since = time.perf_counter()
            return execute(sql, *more)

        connection.execute_wrappers.append(note)
        for name in ENDS:
            setattr(connection, name, partial(self._ended, getattr(connection, name)))
        return note

    def _timed(self, execute: Callable[..., Any], *query: Any) -> Any:
        began = time.perf_counter()
        try:
            return execute(*query)
        finally:
            self.held += time.perf_counter() - began

    def _ended(self, end: Callable[[], Any]) -> Any:
        try:
            return end()
        finally:
            if self._since is not None:
                self.held += time.perf_counter() - self._since
                self._since = None


def _only_reads(sql: Any) -> bool:
    return isinstance(sql, str) and sql.lstrip()[:6].upper() in ("SELECT", "PRAGMA", "BEGIN")
