"""MySQL and MariaDB end transactions by themselves: they undo one that is the victim of a deadlock, and they commit
one before a statement that cannot be undone. Either way the next statement silently begins another transaction, so
that the COMMIT at the end says nothing about what came before.

Sources: MariaDB's "InnoDB Lock Modes", "SAVEPOINT" and "SQL statements that cause an implicit commit".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from django.db import DatabaseError, connections
from django.db.transaction import TransactionManagementError

from .error_codes import is_lock_timeout, rolls_back_transaction

COMMITS_BEFORE = re.compile(
    r"(?:\s|/\*(?!!).*?\*/|--\s.*?\n|#.*?\n)*"
    r"(?:ALTER|ANALYZE|BEGIN(?!\s+NOT)|CREATE(?!(?:\s+OR\s+REPLACE)?\s+TEMPORARY)|DROP(?!\s+TEMPORARY)|GRANT|LOCK|RENAME"
    r"|OPTIMIZE|REPAIR|REVOKE|SET\s+(?:SESSION\s+)?(?:@@(?:SESSION\.)?)?AUTOCOMMIT|START\s+TRANSACTION|TRUNCATE)\b",
    re.IGNORECASE | re.DOTALL,
)
"""Not complete, and blind for what a stored procedure does: for those that people put into per-object functions."""


def mysql_aliases(aliases: Sequence[str]) -> list[str]:
    """Those of the aliases that are MySQL or MariaDB."""
    return [alias for alias in aliases if connections[alias].vendor == "mysql"]


def call_guarded(call: Callable[[], Any], aliases: Sequence[str]) -> Any:
    """Call the function, and have Django know when a server has ended its transaction.

    Costs the databases nothing: a server is asked after a lock wait time-out, and only then.
    """
    guarded = [connections[alias] for alias in aliases]
    for connection in guarded:
        connection.execute_wrappers.append(_StatementGuard(connection))
    try:  # not by execute_wrapper(): a generator's context manager cannot pass an exception on that is frozen
        return call()
    finally:
        for connection in guarded:
            connection.execute_wrappers.pop()


class _StatementGuard:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __call__(self, execute: Callable[..., Any], sql: Any, *rest: Any) -> Any:
        self._refuse_to_commit(sql)
        try:
            return execute(sql, *rest)
        except DatabaseError as error:
            if rolls_back_transaction(error) or (is_lock_timeout(error) and self._undoes_after_lock_waits()):
                # What Django itself does where a savepoint turns out to be gone. A function that catches the error
                # can go on in no new transaction, and is not called a success.
                self._connection.needs_rollback = True
            raise

    def _refuse_to_commit(self, sql: Any) -> None:
        if isinstance(sql, str) and COMMITS_BEFORE.match(sql):
            raise TransactionManagementError(
                f"{' '.join(sql.split())[:40]!r} would commit the transaction of this object on "
                f"{self._connection.alias!r} before its end: run it apart, or use transaction=None"
            )

    def _undoes_after_lock_waits(self) -> bool:
        try:
            with self._connection.cursor() as cursor:
                cursor.execute("SELECT @@innodb_rollback_on_timeout")
                return bool(cursor.fetchone()[0])
        except DatabaseError:  # the session is gone by now, and the transaction with it
            return True
