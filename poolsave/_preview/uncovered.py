"""Watches the databases that no transaction of the dry run covers. A write there would stay, so it is refused."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from .._db.transaction_guard import statement_text
from .refusals import Refusals
from .replacing import replaced
from .statements import written_tables


class UncoveredDatabases:
    """All of this thread's connections but those of the covered aliases. Reads pass."""

    def __init__(self, covered: Collection[str], refusals: Refusals) -> None:
        self.callbacks = 0
        """`on_commit` callbacks there, which Django would call at once, or after a transaction of the caller."""
        self._covered = covered
        self._refusals = refusals

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Refuse writes in this block."""
        with ExitStack() as stack:
            for alias in connections.settings:
                if alias not in self._covered:
                    self._watch(alias, stack)
            yield

    def _watch(self, alias: str, stack: ExitStack) -> None:
        try:
            connection: Any = connections[alias]
        except ImproperlyConfigured:  # its driver is not installed, so nothing can be written there
            return
        if connection.alias in self._covered:  # tests may give one connection several names
            return
        stack.enter_context(connection.execute_wrapper(self._refusing_writes(connection)))
        stack.enter_context(replaced(connection, "on_commit", self._count_callback))

    def _refusing_writes(self, connection: Any) -> Callable[..., Any]:
        def check(execute: Callable[..., Any], sql: Any, *rest: Any) -> Any:
            tables = written_tables(statement_text(sql), escapes=connection.vendor == "mysql")
            if tables:
                self._refusals.refuse(
                    f"the function writes {tables[0]!r} on {connection.alias!r}, which the option databases="
                    f"{tuple(self._covered)!r} does not cover, so that a dry run could not undo it: name it there"
                )
            return execute(sql, *rest)

        return check

    def _count_callback(self, _function: Any, *_args: Any, **_kwargs: Any) -> None:
        self.callbacks += 1
