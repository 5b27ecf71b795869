"""A savepoint for each object of a chunk, in fewer round trips than `atomic()` takes.

Django's `atomic()` takes two: it sets a savepoint and releases it. Here, if the server takes two statements at once,
the next savepoint is set in the round trip that releases the one before. That saves a good part of a small `save()`.
On a worker's psycopg2 connection both go in front of the object's first statement, and need no round trip of their own.

Called by `_worker/modes/per_chunk.py`. The transaction around the objects is in `transactions.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from django.db import Error

from .error_codes import is_savepoint_missing
from .transaction_guard import TransactionGuard
from .transactions import FunctionBlock, OpenTransactions, exit_blocks

R = TypeVar("R")

HOOKS = ("_savepoint", "_savepoint_commit", "_savepoint_rollback")
"""How Django's `savepoint()`, `savepoint_commit()` and `savepoint_rollback()` reach the server."""


class Savepoints:
    """The savepoints of one transaction, on all its aliases.

    Each object runs in a block of `atomic()`. So what third parties do in Django's public methods happens as in a loop:
    a backend that sets the schema again after a rollback, a cache that drops what it has read.
    """

    undone = False
    """Whether the transaction has to be rolled back and run again with savepoints of this class."""
    asks_for_id = False
    """Whether the id of the transaction will be noted."""

    @property
    def id_and_time(self) -> tuple[str | None, int] | None:
        """The id and the time that came with the last statement, if they did."""
        return None

    def __init__(self, transactions: OpenTransactions) -> None:
        self._transactions = transactions
        self._each = self._open_each(transactions)

    def _open_each(self, transactions: OpenTransactions) -> Sequence[ConnectionSavepoints]:
        return [ConnectionSavepoints(guard) for guard in transactions.guards]

    def around(self, call: Callable[[], R]) -> R:
        """Call it, and undo its work on every alias if it raises or if its work can only be rolled back.

        If a server cannot undo it, `needs_rollback` is true afterwards, as with `atomic()`.
        """
        blocks: list[FunctionBlock] = []
        try:
            for each in self._each:
                blocks.append(each.begin())  # noqa: PERF401  if the next one cannot begin, the blocks so far are rolled back
            value = call()
            self._transactions.put_back()
            self._transactions.check_can_commit(blocks)
        except BaseException as error:
            self._transactions.put_back()
            self._transactions.add_transient_cause(error)
            exit_blocks(blocks, error)
            raise
        for each, block in zip(reversed(self._each), reversed(blocks), strict=True):
            each.end(block)
        return value

    def release(self) -> None:
        """Release the last savepoint, which succeeds only in the transaction in which the first one was set.

        Raises:
            Error: if that transaction has ended: by a function past Django, as its guard then says, or by the server.
        """
        for each in self._each:
            each.release()

    def close(self) -> None:
        """Restore the connections' own methods."""
        for each in reversed(self._each):
            each.close()


class ConnectionSavepoints:
    """Replaces Django's savepoint methods on one connection: objects' savepoints are released late, others at once."""

    def __init__(self, guard: TransactionGuard) -> None:
        self._guard = guard
        self._connection = connection = guard.connection
        self._before = {name: vars(connection)[name] for name in HOOKS if name in vars(connection)}
        self._set, self._release, self._roll_back = (getattr(connection, name) for name in HOOKS)
        for name, method in zip(HOOKS, (self._on_set, self._on_release, self._on_rollback), strict=True):
            setattr(connection, name, method)
        self._is_beginning = False
        self._own: str | None = None
        """Django's name for the savepoint of the current object."""
        self._last: str | None = None
        """The server's name for the last savepoint that was set, for this object or an earlier one."""
        self._joined = connection.vendor == "postgresql" and _takes_two_statements(connection)
        # Duck-typed: importing `psycopg2.py` here would require the driver.
        self._prefixing: Any = connection.connection if hasattr(connection.connection, "prefix_next") else None
        self._prefix: Any = None

    def begin(self) -> FunctionBlock:
        """Begin an object, if the transaction can go on."""
        self._connection.validate_no_broken_transaction()
        block = FunctionBlock(self._connection.alias, True, False)
        self._is_beginning = True
        try:
            block.__enter__()
        finally:
            self._is_beginning = False
        return block

    def end(self, block: FunctionBlock) -> None:
        """End an object that has succeeded."""
        block.__exit__(None, None, None)

    def _on_set(self, name: str) -> None:
        if not self._is_beginning:
            self._set(name)
            return
        self._own = name
        if self._last is None:
            self._set(name)
            self._last = name
        elif self._joined:
            self._checked(self._renew, self._last, name)
        else:
            self._checked(self._release, self._last)
            self._set(self._last)

    def _renew(self, last: str, name: str) -> None:
        # Without a prefix, reuse the name, so that a prepared statement stays valid. A prefix needs a new name: if the
        # server refuses the text, rolling back to the new name has to fail. With the old name it would roll back to the
        # end of the object before, in a transaction that cannot go on.
        ops = self._connection.ops
        release = ops.savepoint_commit_sql(last)
        if self._prefixing is not None:
            text = f"{release}; {ops.savepoint_create_sql(name)}"
            self._prefix = self._prefixing.prefix_next(text, ops.savepoint_rollback_sql(name))
        if self._prefix is None:
            with self._connection.cursor() as cursor:
                cursor.execute(f"{release}; {ops.savepoint_create_sql(last)}")

    def _on_rollback(self, name: str) -> None:
        if name != self._own:
            self._roll_back(name)
            return
        is_set, before = self._prefix is None or self._prefix.maybe_sent, self._last
        self._settle()
        if is_set and self._last is not None and before is not None:
            self._undo(self._last, before)

    def _undo(self, name: str, before: str) -> None:
        if name == before:
            self._checked(self._roll_back, name)
            return
        try:
            self._roll_back(name)
        except Error:  # it was never set: the server has refused the text with the prefix
            self._checked(self._roll_back, before)
            raise

    def _checked(self, send: Callable[..., None], *names: str) -> None:
        # If the savepoint is missing, the transaction in which it was set has ended.
        try:
            send(*names)
        except Error as error:
            if is_savepoint_missing(error) and not self._guard.rolled_back:
                self._guard.ended = True
            raise

    def _on_release(self, name: str) -> None:
        if name != self._own:
            self._release(name)
            return
        self._settle()

    def _settle(self) -> None:
        if self._prefix is not None:
            if self._prefix.maybe_sent:
                self._last = self._own
            self._prefix = None
            self._prefixing.discard()

    def release(self) -> None:
        """Release the last savepoint."""
        if self._last is not None:
            self._checked(self._release, self._last)

    def close(self) -> None:
        """Restore the connection's own methods."""
        for name in HOOKS:
            delattr(self._connection, name)
        vars(self._connection).update(self._before)


def _takes_two_statements(connection: Any) -> bool:
    # With a `prepare_threshold` psycopg 3 prepares repeated statements, and it cannot prepare two at once.
    return getattr(connection.connection, "prepare_threshold", None) is None
