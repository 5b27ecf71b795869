"""MySQL and MariaDB: refuses what ends an object's transaction, and notices that it has ended.

They roll back the victim of a deadlock, and commit before a statement that cannot be undone. Either way the next
statement silently begins another transaction, so the COMMIT at the end says nothing about what came before. A savepoint
does: any end of the transaction removes it, whatever text or method has brought it about. It takes no round trip, since
it is set with BEGIN and released with COMMIT or ROLLBACK. Django's own way takes three round trips, and this one two:

    autocommit(False) -> SET autocommit=0; SAVEPOINT ...
    commit()          -> RELEASE SAVEPOINT ...; COMMIT; SET autocommit=1

A statement that poolsave itself adds goes in front of the latter.

Sources: MariaDB's "InnoDB Lock Modes", "SAVEPOINT" and "SQL statements that cause an implicit commit".
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from typing import Any

from .error_codes import connection_lost, is_lock_timeout, is_savepoint_missing, rolls_back_transaction
from .transaction_guard import (
    COMMITS_BEFORE,
    TransactionGuard,
    armed_guard_of,
    check_end,
    ends_transaction,
    guard_of,
    statement_text,
)

SAVEPOINT = "poolsave_transaction"
MULTI_STATEMENTS = 1 << 16
"""The client's flag CLIENT_MULTI_STATEMENTS; mysqlclient sets it unless the option `multi_statements` is False."""


class MysqlGuard(TransactionGuard):
    """Puts a class of its own in place of the connection's, and recognises its transaction by a savepoint."""

    ends = staticmethod(partial(ends_transaction, escapes=True))

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self._class = type(self.raw)
        self._is_set = False
        self._answered = 0
        """How many of the statements that were sent last the server has answered."""

    def install(self) -> None:
        guarded = _guarded_connection(self._class)  # type: ignore[arg-type]  # mypy calls types unhashable
        super().install()
        self.raw.__class__ = guarded

    def uninstall(self) -> None:
        self.raw.__class__ = self._class
        super().uninstall()

    def begin(self) -> None:
        """Begin the transaction and set its savepoint."""
        try:
            self._send("SET autocommit=0", f"SAVEPOINT {SAVEPOINT}")
        except BaseException:
            self._close()  # autocommit may be off there, while Django believes that it is on
            raise
        self._is_set = True

    def end(self, how: str) -> bool:
        """End the transaction if the savepoint is there; gives False if none was set, or not by this transaction."""
        if not self._is_set or self.rolled_back:
            return False
        # Before it is sent: if it fails, Django rolls back next, and that has to be the driver's own ROLLBACK.
        self._is_set = False
        first = [] if self.last is None or how != "COMMIT" else [self.last.text]
        try:
            self._send(*first, f"RELEASE SAVEPOINT {SAVEPOINT}", how, "SET autocommit=1")
        except self.connection.Database.Error as error:
            if self.last is not None and self._answered < len(first):
                self.last.has_failed = not connection_lost(error)
            return self._answered > len(first) + 1 or self._has_failed(error, how)  # Django sends the last one again
        except BaseException:  # of a signal's handler: answers may be left, for which the driver refuses what follows
            self._close()
            raise
        return True

    def _has_failed(self, error: Exception, how: str) -> bool:
        self.note_error(error)
        self.ended = self.ended or (is_savepoint_missing(error) and not self.rolled_back)
        if how == "COMMIT" or not self.ended:
            raise error
        return False

    def _send(self, *statements: str) -> None:
        self._answered = 0
        at_once = self.raw.client_flag & MULTI_STATEMENTS
        if at_once:
            self.raw.query("; ".join(statements))
            self._answered = 1
        for statement in statements[self._answered :]:
            if at_once:
                self.raw.next_result()
            else:
                self.raw.query(statement)
            self._answered += 1

    def _close(self) -> None:
        with suppress(Exception):  # such as that it is closed already
            self.connection.close()

    def takes_last(self) -> bool:
        return self.buffer is None and self._is_set and not self.rolled_back

    def has_aborted(self) -> bool:
        return not getattr(self.raw, "open", True)

    def check_statement(self, statement: Any) -> None:
        text = statement_text(statement)
        if COMMITS_BEFORE.match(text):
            self.refuse(" ".join(text.split())[:40], "commit")
        super().check_statement(text)

    def note_error(self, error: BaseException) -> None:
        """Record whether a failed statement has undone the whole transaction. It sends a query only after a lock wait
        time-out."""
        if rolls_back_transaction(error) or (is_lock_timeout(error) and self._undoes_after_lock_waits()):
            self.note_rollback()

    def _undoes_after_lock_waits(self) -> bool:
        try:
            with self.raw.cursor() as cursor:
                cursor.execute("SELECT @@innodb_rollback_on_timeout")
                return bool(cursor.fetchone()[0])
        except Exception:  # of whatever driver: the session has ended, and the transaction with it
            return True


@cache
def _guarded_connection(base: Any) -> Any:
    if hasattr(base, "is_guarded"):
        return base

    send = _noting_errors(base.query)

    class Connection(base):  # type: ignore[misc]  # a second base would make `__class__` refuse it
        __slots__ = ()
        is_guarded = True

        def query(self, query: Any, *args: Any, **options: Any) -> Any:
            guard = armed_guard_of(self)
            if guard is not None:
                guard.check_statement(query)
            return send(self, query, *args, **options)

        next_result = _noting_errors(base.next_result)
        commit = _ending(base.commit, "COMMIT")
        rollback = _ending(base.rollback, "ROLLBACK")

        def autocommit(self, on: Any) -> None:
            check_end(self, "autocommit()")
            guard: Any = guard_of(self)
            if guard is None or on:
                super().autocommit(on)
            else:
                guard.begin()

    if hasattr(base, "store_result"):  # a row that is locked is an error of this one; PyMySQL reads rows in query()
        Connection.store_result = _noting_errors(base.store_result)
    return Connection


def _ending(method: Callable[[Any], None], how: str) -> Any:
    def end(raw: Any) -> None:
        check_end(raw, f"{how.lower()}()")
        guard: Any = guard_of(raw)
        if guard is None or not guard.end(how):
            method(raw)

    return end


def _noting_errors(method: Callable[..., Any]) -> Any:
    def call(raw: Any, *args: Any, **options: Any) -> Any:
        try:
            return method(raw, *args, **options)
        except Exception as error:
            guard: Any = armed_guard_of(raw)
            if guard is not None:
                guard.note_error(error)
            raise

    return call
