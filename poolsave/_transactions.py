"""What surrounds one call of the user's function, and what can be said about the database afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from django.db import Error, connections, transaction
from django.db.transaction import TransactionManagementError

from ._sqlstates import contact_lost, is_transient
from .outcomes import Status

__all__ = ["COMMITTED", "COMMITTING", "RUNNING", "Attempt", "commit_each", "leave_to_function"]

RUNNING = 1
COMMITTING = 2
COMMITTED = 3
"""How far an object is, as its worker notes it where its own death cannot take it; 0 is not begun."""


class Attempt(NamedTuple):
    """What one call came to."""

    status: Status
    value: Any = None
    error: BaseException | None = None
    retry: bool = False
    """The database says that the same may succeed if it is tried again, and nothing of this attempt is left."""


def leave_to_function(call: Callable[[], Any], mark: Callable[[int], None], aliases: Sequence[str]) -> Attempt:
    """`transaction=None`: the function manages its own transactions, if any."""
    mark(RUNNING)
    try:
        value = call()
    except BaseException as error:  # whatever a user's function raises is that object's failure
        return Attempt(Status.FAILED, error=error)
    mark(COMMITTED)
    return Attempt(Status.SUCCEEDED, value)


def commit_each(call: Callable[[], Any], mark: Callable[[int], None], aliases: Sequence[str]) -> Attempt:
    """`transaction="object"`: one transaction around the call, on every alias."""
    mark(RUNNING)
    outermost = not any(connections[alias].in_atomic_block for alias in aliases)
    entered: list[transaction.Atomic] = []
    try:
        for alias in aliases:
            block = transaction.atomic(using=alias)
            block.__enter__()
            entered.append(block)
        value = call()
        _refuse_doomed(aliases)
    except BaseException as error:  # whatever a user's function raises is that object's failure
        _roll_back(entered, error)
        return Attempt(Status.FAILED, error=error, retry=outermost and is_transient(error))
    callbacks = _take_callbacks(aliases) if outermost else []
    mark(COMMITTING)
    failed = _commit(entered)
    if failed is not None:
        return failed if outermost else failed._replace(retry=False)
    mark(COMMITTED)
    return Attempt(Status.SUCCEEDED, value, _run_callbacks(callbacks))


def _refuse_doomed(aliases: Sequence[str]) -> None:
    # atomic() would roll back here without a word, and PostgreSQL answers COMMIT with ROLLBACK.
    for alias in aliases:
        connection = connections[alias]
        if connection.needs_rollback or _server_has_aborted(connection):
            raise TransactionManagementError(
                f"the function returned, but its transaction on {alias!r} can only be rolled back: a database error "
                "was caught inside it, or set_rollback(True) was called; put atomic() around what may fail"
            )


def _server_has_aborted(connection: Any) -> bool:
    if connection.vendor != "postgresql" or connection.connection is None:
        return False
    # libpq's PQTRANS_INERROR, under the same name and number in psycopg2 and psycopg 3.
    return int(connection.connection.info.transaction_status) == 3


def _roll_back(entered: list[transaction.Atomic], error: BaseException) -> None:
    for block in reversed(entered):
        try:
            block.__exit__(type(error), error, error.__traceback__)
        except Error as secondary:  # the connection is gone, and with it the transaction
            connections[block.using or "default"].close()
            error.add_note(f"rolling back on {block.using!r} failed, too: {secondary}")


def _commit(entered: list[transaction.Atomic]) -> Attempt | None:
    """Commit on all aliases; gives what went wrong, or None."""
    committed: list[str | None] = []
    for block in reversed(entered):
        try:
            block.__exit__(None, None, None)
        except BaseException as error:
            rest = entered[: len(entered) - len(committed) - 1]
            _roll_back(rest, error)
            return _failed_commit(error, block.using, committed)
        committed.append(block.using)
    return None


def _failed_commit(error: BaseException, alias: str | None, committed: list[str | None]) -> Attempt:
    if committed:
        error.add_note(f"committed on {committed!r} before the commit on {alias!r} failed")
        return Attempt(Status.LOST, error=error)
    if contact_lost(error) or not isinstance(error, Error):
        connections[alias or "default"].close()
        error.add_note("the answer to COMMIT did not arrive, so the object may have been saved or not")
        return Attempt(Status.LOST, error=error)
    return Attempt(Status.FAILED, error=error, retry=is_transient(error))


def _take_callbacks(aliases: Sequence[str]) -> list[Callable[[], object]]:
    # Django would run them inside the block's exit, where an error of theirs looks like one of COMMIT.
    taken: list[Callable[[], object]] = []
    for alias in aliases:
        connection = connections[alias]
        taken += [entry[1] for entry in connection.run_on_commit]
        connection.run_on_commit = []
    return taken


def _run_callbacks(callbacks: list[Callable[[], object]]) -> BaseException | None:
    """Run all `on_commit` callbacks; gives what they raised. The object is saved whatever they do."""
    errors: list[BaseException] = []
    for callback in callbacks:
        try:
            callback()
        except BaseException as error:  # told in the outcome of the object
            errors.append(error)
    if len(errors) > 1:
        return BaseExceptionGroup("several on_commit callbacks raised", errors)
    return errors[0] if errors else None
