"""Notices that MySQL or MariaDB has ended a transaction by itself.

They roll back the victim of a deadlock, and commit before a statement that cannot be undone. Either way the next
statement silently begins another transaction, so the COMMIT at the end says nothing about what came before.

Sources: MariaDB's "InnoDB Lock Modes", "SAVEPOINT" and "SQL statements that cause an implicit commit".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from django.db import DatabaseError, connections

from .error_codes import is_lock_timeout, is_savepoint_missing, rolls_back_transaction
from .transaction_guard import COMMITS_BEFORE, TransactionGuard, check_end, ends_transaction, guard_of, statement_text

HIDES_WHAT_IT_RUNS = re.compile(r"\s*(?:CALL|EXECUTE)\b", re.IGNORECASE)
"""Statements that may commit inside: whether they did, only a savepoint shows that was set before."""
SAVEPOINT = "poolsave_before_call"


class MysqlGuard(TransactionGuard):
    """Puts a class of its own in place of the connection's while it is armed."""

    ends = staticmethod(partial(ends_transaction, escapes=True))

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self._class = type(self.raw)
        self._is_set = False

    def arm(self) -> None:
        super().arm()
        self.raw.__class__ = _guarded_connection(self._class)  # type: ignore[arg-type]  # mypy calls types unhashable

    def disarm(self) -> bool:
        self.raw.__class__ = self._class
        if self._is_set and not self.rolled_back and not self.was_replaced():
            self._release()
        return super().disarm()

    def _release(self) -> None:
        try:
            self.raw.query(f"RELEASE SAVEPOINT {SAVEPOINT}")
        except Exception as error:  # of whatever driver
            self.note_error(error)

    def check_statement(self, statement: Any) -> None:
        text = statement_text(statement)
        if COMMITS_BEFORE.match(text):
            self.refuse(" ".join(text.split())[:40], "commit")
        super().check_statement(text)
        # Inside a block of atomic(), its savepoint shows the same, and releasing that one would release this one.
        if HIDES_WHAT_IT_RUNS.match(text) and not self._is_set and not self.connection.savepoint_ids:
            self._is_set = True
            self.raw.query(f"SAVEPOINT {SAVEPOINT}")

    def note_error(self, error: BaseException) -> None:
        """Record whether a failed statement has ended the transaction, or shows that it was ended before."""
        if rolls_back_transaction(error):
            self.note_rollback()
        elif is_savepoint_missing(error) and not self.rolled_back:
            self.ended = True


@cache
def _guarded_connection(base: Any) -> Any:
    if hasattr(base, "is_guarded"):
        return base

    class Connection(base):  # type: ignore[misc]  # a second base would make `__class__` refuse it
        __slots__ = ()
        is_guarded = True

        def query(self, query: Any, *args: Any) -> Any:
            guard: Any = guard_of(self)
            if guard is None:
                return super().query(query, *args)
            guard.check_statement(query)
            try:
                return super().query(query, *args)
            except Exception as error:
                guard.note_error(error)
                raise

        def commit(self) -> None:
            check_end(self, "commit()")
            super().commit()

        def rollback(self) -> None:
            check_end(self, "rollback()")
            super().rollback()

        def autocommit(self, *args: Any) -> None:
            check_end(self, "autocommit()")
            super().autocommit(*args)

    return Connection


def mysql_aliases(aliases: Sequence[str]) -> list[str]:
    """Give those of the aliases that are MySQL or MariaDB."""
    return [alias for alias in aliases if connections[alias].vendor == "mysql"]


def call_guarded(call: Callable[[], Any], aliases: Sequence[str]) -> Any:
    """Call the function, and set `needs_rollback` if a server has ended its transaction.

    It sends a query only after a lock wait time-out.
    """
    guarded = [connections[alias] for alias in aliases]
    for connection in guarded:
        connection.execute_wrappers.append(_StatementGuard(connection))
    try:  # not by execute_wrapper(): a generator's context manager fails on a frozen exception
        return call()
    finally:
        for connection in guarded:
            connection.execute_wrappers.pop()


class _StatementGuard:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __call__(self, execute: Callable[..., Any], sql: Any, *rest: Any) -> Any:
        try:
            return execute(sql, *rest)
        except DatabaseError as error:
            if rolls_back_transaction(error) or (is_lock_timeout(error) and self._undoes_after_lock_waits()):
                # As Django does where a savepoint is gone: a function that catches the error cannot go on in a new
                # transaction, nor end as a success.
                self._connection.needs_rollback = True
                guard = guard_of(self._connection.connection)
                if guard is not None:
                    guard.rolled_back = True
            raise

    def _undoes_after_lock_waits(self) -> bool:
        try:
            with self._connection.cursor() as cursor:
                cursor.execute("SELECT @@innodb_rollback_on_timeout")
                return bool(cursor.fetchone()[0])
        except DatabaseError:  # the session has ended, and the transaction with it
            return True
