"""A savepoint for each object of a chunk, with at most one question to the server for each, and none where that can be.

Django's `atomic()` sets a savepoint and releases it. Here the one of the object before is released together with the
setting of the next, where a server takes two statements at once, which is a good part of the time of a small `save()`.
On connections that workers opened by psycopg2, both go along with the first statement of the object, if there is any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from django.db import Error

from .error_codes import is_savepoint_missing
from .transaction_guard import guard_of
from .transactions import FunctionBlock, check_can_commit, is_doomed, rollback_on
from .transient_errors import add_transient_cause

R = TypeVar("R")

HOOKS = ("_savepoint", "_savepoint_commit", "_savepoint_rollback")
"""How Django's `savepoint()`, `savepoint_commit()` and `savepoint_rollback()` reach the server."""


class Savepoints:
    """Those of one transaction, on all its aliases.

    A block of `atomic()` is around each object, so that what others have put into Django's public methods (a backend
    that sets the schema again after a rollback, a cache that forgets what it has read) happens as it does in a loop.
    """

    def __init__(self, used: Sequence[Any]) -> None:
        """`used`: the connections that the transaction is on."""
        self.connections = used
        self._each = [_ConnectionSavepoints(connection) for connection in used]

    def around(self, call: Callable[[], R]) -> R:
        """Call it, and undo what it did if it raises or could only be rolled back, on every alias.

        Where a server cannot, `needs_rollback` is true afterwards, as it is with `atomic()`.
        """
        blocks: list[FunctionBlock] = []
        try:
            for each in self._each:
                blocks.append(each.begin())  # noqa: PERF401  if the next one cannot begin, these are left
            value = call()
            if not self.has_ended():
                check_can_commit(self.connections)
        except BaseException as error:
            add_transient_cause(error, filter(is_doomed, self.connections))
            rollback_on(blocks, error)
            raise
        for block in reversed(blocks):
            block.__exit__(None, None, None)
        return value

    def has_ended(self) -> bool:
        """Whether the transaction is known to have been ended past Django on one of the aliases."""
        return any(each.has_ended() for each in self._each)

    def release(self) -> None:
        """Release the last one, which succeeds only in the transaction in which the first one was set.

        Raises:
            Error: if it is another one: a function has ended that past Django, which `has_ended` says afterwards, or
                the server did.
        """
        for each in self._each:
            each.release()

    def close(self) -> None:
        """Give the connections back as they were."""
        for each in reversed(self._each):
            each.close()


class _ConnectionSavepoints:
    """Stands between Django and one connection. The savepoints of objects are released late; all others pass."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._before = {name: vars(connection)[name] for name in HOOKS if name in vars(connection)}
        self._set, self._release, self._roll_back = (getattr(connection, name) for name in HOOKS)
        for name, method in zip(HOOKS, (self._on_set, self._on_release, self._on_rollback), strict=True):
            setattr(connection, name, method)
        self._beginning = False
        self._own: str | None = None
        """Django's name for the savepoint of the present object."""
        self._last: str | None = None
        """The server's name for it, or for that of an object before if nothing was sent since."""
        self._joined = connection.vendor == "postgresql" and _takes_two_statements(connection)
        # What workers opened by psycopg2 is of the class in psycopg2.py, which is there only if the driver is.
        self._ahead: Any = connection.connection if hasattr(connection.connection, "send_ahead") else None
        self._due: Any = None
        self._guard: Any = guard_of(connection.connection)

    def has_ended(self) -> bool:
        """Whether the transaction is known to have been ended past Django."""
        return bool(self._guard.has_ended())

    def begin(self) -> FunctionBlock:
        """Begin an object, if the transaction can go on."""
        self._connection.validate_no_broken_transaction()
        block = FunctionBlock(self._connection.alias, True, False)
        self._beginning = True
        try:
            block.__enter__()
        finally:
            self._beginning = False
        return block

    def _on_set(self, name: str) -> None:
        if not self._beginning:
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
        # The same text again, which is known where statements are prepared; but not if it goes along with one that the
        # server may refuse: then to roll back to it has to fail, and not to lead to the end of an object before, in a
        # transaction that cannot go on.
        ops = self._connection.ops
        release = ops.savepoint_commit_sql(last)
        if self._ahead is not None:
            text = f"{release}; {ops.savepoint_create_sql(name)}"
            self._due = self._ahead.send_ahead(text, ops.savepoint_rollback_sql(name))
        if self._due is None:
            with self._connection.cursor() as cursor:
                cursor.execute(f"{release}; {ops.savepoint_create_sql(last)}")

    def _on_rollback(self, name: str) -> None:
        if name != self._own:
            self._roll_back(name)
            return
        is_set, before = self._due is None or self._due.begun, self._last
        self._settle()
        if is_set and self._last is not None and before is not None:
            self._undo(self._last, before)

    def _undo(self, name: str, before: str) -> None:
        if name == before:
            self._checked(self._roll_back, name)
            return
        try:
            self._roll_back(name)
        except Error:  # it was never set, if the server has refused the text that it went along with
            self._checked(self._roll_back, before)
            raise

    def _checked(self, send: Callable[..., None], *names: str) -> None:
        # A savepoint that is gone was set in another transaction than the one that is open.
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
        if self._due is not None:
            if self._due.begun:
                self._last = self._own
            self._due = None
            self._ahead.forget()

    def release(self) -> None:
        """Release the last one."""
        if self._last is not None:
            self._checked(self._release, self._last)

    def close(self) -> None:
        """Take nothing in between any more."""
        for name in HOOKS:
            delattr(self._connection, name)
        vars(self._connection).update(self._before)


def _takes_two_statements(connection: Any) -> bool:
    # psycopg 3 prepares what it has seen several times, if it is asked to, and cannot prepare two at once.
    return getattr(connection.connection, "prepare_threshold", None) is None
