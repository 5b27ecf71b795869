"""Runs the `on_commit` callbacks of an object after its COMMIT, in which they can no longer change anything.

`transactions.py` and `_worker/modes/per_chunk.py` take them from Django before COMMIT, and call them afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from django.db.transaction import TransactionManagementError

from .._runtime import forks
from .._runtime.forks import end_child
from .transaction_guard import TransactionGuard

if TYPE_CHECKING:
    from .transactions import OpenTransactions


def detach_on_commit(owned: Iterable[tuple[Any, int]]) -> list[Callable[[], object]]:
    """Remove the function's `on_commit` callbacks from Django, and give them.

    Django would run them inside the block's exit, where their errors look like errors of COMMIT.
    """
    callbacks: list[Callable[[], object]] = []
    for connection, before in owned:
        if len(connection.run_on_commit) > before:
            callbacks += [entry[1] for entry in connection.run_on_commit[before:]]
            del connection.run_on_commit[before:]
    return callbacks


def _error_of(
    callback: Callable[[], object], limit: Callable[[], AbstractContextManager[None]]
) -> BaseException | None:
    try:
        with limit():
            callback()
    except BaseException as error:
        return error
    return None


def run_on_commit(
    callbacks: list[Callable[[], object]],
    transactions: OpenTransactions,
    limit: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> BaseException | None:
    """Run all `on_commit` callbacks; gives what they raised. The object is saved in any case."""
    if not callbacks:
        return None
    errors: list[BaseException] = []
    forked = forks.flag
    for callback in callbacks:
        error = _error_of(callback, limit)
        if forked:
            end_child(error)
        if error is not None:  # reported in the outcome of the object
            errors.append(error)
    errors += _roll_back_left_open(transactions)
    if len(errors) > 1:
        return BaseExceptionGroup("several on_commit callbacks raised", errors)
    return errors[0] if errors else None


def _roll_back_left_open(transactions: OpenTransactions) -> list[BaseException]:
    """Roll back what callbacks have begun and not ended; gives an error for each connection.

    The next objects would run inside of that, and never be committed.
    """
    left = [connection for connection, _ in transactions.owned if _has_transaction(connection, transactions.guards)]
    for connection in left:
        _end_transaction(connection)
    return [
        TransactionManagementError(
            f"an on_commit callback has left a transaction open on {connection.alias!r}, so that what it has saved "
            "there is rolled back: leave atomic() by `with`, and turn autocommit on again"
        )
        for connection in left
    ]


def _has_transaction(connection: Any, guards: Iterable[TransactionGuard]) -> bool:
    if connection.connection is None:
        return False
    if connection.in_atomic_block or not connection.autocommit:
        return True
    return any(guard.connection is connection and guard.has_transaction() for guard in guards)


def _end_transaction(connection: Any) -> None:
    connection.in_atomic_block = connection.closed_in_transaction = False
    connection.savepoint_ids.clear()
    connection.atomic_blocks.clear()
    with suppress(Exception):  # whatever the driver raises, such as that it is closed
        connection.rollback()  # first: a database in memory stays open
        connection.set_autocommit(True)
    connection.close()
