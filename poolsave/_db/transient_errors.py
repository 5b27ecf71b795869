"""Keeps in mind the transient error that a function catches, since a caught deadlock is still a deadlock.

A receiver that only logs what went wrong takes a deadlock for an error of its own. The server has undone the work or
refuses to go on, and what fails afterwards no longer says why. The same transaction may succeed if it is tried again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db.utils import DatabaseErrorWrapper

from .._runtime.foreign_exceptions import set_context
from .error_codes import chain_of, is_transient


class TransientErrors(DatabaseErrorWrapper):
    """In the place of a connection's `wrap_database_errors`, by which Django goes wherever it calls the driver."""

    def __init__(self, connection: Any, inner: Any) -> None:
        super().__init__(connection)
        self._inner = inner
        self.last: BaseException | None = None

    def __enter__(self) -> None:
        self._inner.__enter__()

    def __exit__(self, *raised: object) -> None:
        error = raised[1]
        if isinstance(error, BaseException):
            if is_transient(error):
                self.last = error
            self._inner.__exit__(*raised)


def watch_transient_errors(connection: Any) -> None:
    """A transaction begins: forget those of the one before."""
    errors = connection.wrap_database_errors
    if isinstance(errors, TransientErrors):
        errors.last = None
    else:
        connection.wrap_database_errors = TransientErrors(connection, errors)


def add_transient_cause(error: BaseException, doomed: Iterable[Any]) -> None:
    """Have an error say what came before it on connections that can only be rolled back, if that was transient."""
    for connection in doomed:
        last = getattr(connection.wrap_database_errors, "last", None)
        if last is None or is_transient(error):
            continue
        *_, first = chain_of(error)
        if all(one is not error for one in chain_of(last)):  # or to print it would never end
            set_context(first, last)
