"""Remembers a transient error that a function catches, so that its object is tried again.

A signal receiver that catches and logs every error hides a deadlock. The server has undone the work or refuses to go
on, and the error that follows no longer says why. The same transaction may succeed if it is tried again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db.utils import DatabaseErrorWrapper

from .._runtime.foreign_exceptions import set_context
from .error_codes import chain_of, is_transient


class TransientErrors(DatabaseErrorWrapper):
    """Replaces a connection's `wrap_database_errors`, which Django enters around every call of the driver."""

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
    """Start to remember at the begin of a transaction, without the errors of the one before."""
    errors = connection.wrap_database_errors
    if isinstance(errors, TransientErrors):
        errors.last = None
    else:
        connection.wrap_database_errors = TransientErrors(connection, errors)


def add_transient_cause(error: BaseException, doomed: Iterable[Any]) -> None:
    """Set a remembered transient error as the context of `error`, for connections that can only be rolled back."""
    for connection in doomed:
        last = getattr(connection.wrap_database_errors, "last", None)
        if last is None or is_transient(error):
            continue
        *_, first = chain_of(error)
        if all(link is not error for link in chain_of(last)):  # a cycle would print without end
            set_context(first, last)
