"""Refuses to end a function's transaction past Django, and notices if it was ended nevertheless.

A raw COMMIT, a driver's `commit()`, a driver's own context manager or a new connection end the transaction that Django
takes for open. Afterwards an exception does not undo what came before, and a COMMIT does not save it. A guard refuses
what it sees before it is sent, as Django refuses `connection.commit()`, so that nothing is lost. It notices the rest
when the function has returned, and the object is LOST.

    begin_on -> guard.arm() -> function -> driver -> check_statement(), check_end() -> guard.disarm() -> commit_on

Each driver has a subclass in the module of its name. It knows which methods every statement passes through, and how the
driver shows that a transaction is open. No guard sends a query.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from django.db import connections
from django.db.transaction import TransactionManagementError
from django.db.utils import DatabaseErrorWrapper

from .._runtime.foreign_exceptions import set_context
from .error_codes import chain_of, is_transient

# The statements that end a transaction. Sources: PostgreSQL's and SQLite's "COMMIT", "END", "ROLLBACK"; PostgreSQL's
# "PREPARE TRANSACTION"; MariaDB's "SQL statements that cause an implicit commit".
_COMMENTS = r"(?:\s|/\*(?!!).*?\*/|--[^\n]*\n|#[^\n]*\n)*+"
"""Possessive, so that a long row of comments is matched in one pass."""
_FLAGS = re.IGNORECASE | re.DOTALL
_ENDS = r"(?:ABORT|COMMIT|PREPARE\s+TRANSACTION|ROLLBACK(?!\s+(?:WORK\s+|TRANSACTION\s+)?TO\b))\b"
_END = r"END\s*(?:WORK|TRANSACTION|AND|;|$)"
_FIRST = re.compile(f"{_COMMENTS}(?:{_ENDS}|{_END})", _FLAGS)
_LATER = re.compile(f";{_COMMENTS}(?:{_ENDS}|{_END})", _FLAGS)
_NO_STATEMENT = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|`[^`]*`|(\$\w*\$).*?\1|--[^\n]*|/\*.*?\*/", re.DOTALL)
_HAS_BODY = re.compile(rf"{_COMMENTS}(?:CREATE|DO|BEGIN)\b", _FLAGS)
"""Statements with a body, whose statements run later or in a block of their own."""
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_HARMLESS = frozenset("DdFfIiSsUuVvWw")
"""First letters of the most frequent statements; no statement that ends a transaction begins with one."""

COMMITS_BEFORE = re.compile(
    rf"{_COMMENTS}"
    r"(?:ALTER|ANALYZE(?:\s+(?:LOCAL|NO_WRITE_TO_BINLOG))?\s+TABLE|BEGIN(?!\s+NOT)"
    r"|CREATE(?!(?:\s+OR\s+REPLACE)?\s+TEMPORARY)|DROP(?!\s+TEMPORARY)|GRANT|LOCK|OPTIMIZE|RENAME"
    r"|REPAIR|REVOKE|SET\s+(?:SESSION\s+)?(?:@@(?:SESSION\.)?)?AUTOCOMMIT|START\s+TRANSACTION|TRUNCATE)\b",
    _FLAGS,
)
"""Statements before which MySQL and MariaDB commit. Limited to those that occur in per-object functions; what a stored
procedure does is not seen."""

_armed: dict[int, TransactionGuard] = {}
"""The armed guards, by the id of the driver's connection, which the guard keeps alive."""


def statement_text(statement: Any) -> str:
    """Give the text of a statement, in which only keywords matter; "?" for parts that only the driver can compose."""
    if isinstance(statement, str):
        return statement
    if isinstance(statement, bytes | bytearray):
        return statement.decode("latin-1")
    parts = getattr(statement, "_obj", getattr(statement, "_wrapped", ""))  # psycopg 3, psycopg2
    if isinstance(parts, list):  # sql.Composed
        return "".join(map(statement_text, parts))
    return parts if type(statement).__name__ == "SQL" and isinstance(parts, str) else "?"


def ends_transaction(text: str, *, escapes: bool = False) -> bool:
    """Whether a statement in the text ends the open transaction. With `escapes`, strings may contain backslash escapes,
    as in MySQL and MariaDB."""
    if text[:1] not in _HARMLESS and _FIRST.match(text):
        return True
    if ";" not in text or not _LATER.search(text):
        return False
    if _HAS_BODY.match(text):
        return False
    if escapes:
        text = _ESCAPED.sub("", text)
    return bool(_LATER.search(_NO_STATEMENT.sub(" ", text)))


def guard_of(raw: Any) -> TransactionGuard | None:
    """Give the guard of a driver's connection while a function runs inside its transaction, else None."""
    return _armed.get(id(raw))


def check_end(raw: Any, name: str) -> None:
    """Refuse a method of the driver that would end the transaction in which a function runs.

    Raises:
        TransactionManagementError: naming the statement or method.
    """
    guard = guard_of(raw)
    if guard is not None:
        guard.refuse(name)


class TransactionGuard:
    """Guards one transaction from its BEGIN to just before its COMMIT or ROLLBACK."""

    ends: Callable[[str], bool] = staticmethod(ends_transaction)

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.raw = connection.connection
        self.ended = False
        """The transaction was ended past Django: its work may be in the database or not."""
        self.rolled_back = False
        """The server has rolled it back with an error, so none of its work is left."""
        self._outer: TransactionGuard | None = None
        self._connect: Any = None

    def arm(self) -> None:
        """Begin to guard, right before the function runs."""
        self._outer = _armed.get(id(self.raw))
        _armed[id(self.raw)] = self
        self._connect = vars(self.connection).get("connect")
        self.connection.connect = partial(self.refuse, "connect()")

    def disarm(self) -> bool:
        """Stop guarding after the function has ended; says whether its transaction was ended past Django."""
        ended = self.has_ended() or connections[self.connection.alias] is not self.connection
        if self._connect is None:
            vars(self.connection).pop("connect", None)
        else:
            self.connection.connect = self._connect
        if self._outer is None:
            _armed.pop(id(self.raw), None)
        else:  # this run is inside the transaction of another run's object
            _armed[id(self.raw)] = self._outer
            self._outer.ended |= ended
            self._outer.rolled_back |= self.rolled_back
        return ended

    def has_ended(self) -> bool:
        """Whether the transaction is known to have been ended past Django."""
        if self.was_replaced() or (self.is_over() and not self.rolled_back):
            self.ended = True
        return self.ended

    def is_over(self) -> bool:
        """Whether the driver can tell that the transaction is no longer open."""
        return False

    def was_replaced(self) -> bool:
        """Whether the Django wrapper has another driver connection by now."""
        return self.connection.connection is not self.raw

    def check_statement(self, statement: Any) -> None:
        """Refuse a statement that would end the transaction, or that follows its rollback by the server.

        Raises:
            TransactionManagementError: naming the statement or method.
        """
        if self.rolled_back:
            raise TransactionManagementError(
                f"the database has rolled back the transaction of this object on {self.connection.alias!r} with an "
                "error, so that nothing can follow in it: let that error end the function"
            )
        text = statement_text(statement)
        if self.ends(text):
            self.refuse(" ".join(text.split())[:40])

    def note_rollback(self) -> None:
        """Record that the server has rolled back the transaction with an error, which the function may catch.

        Later statements would run in no transaction, or in another one.
        """
        self.rolled_back = True
        self.connection.needs_rollback = True

    def refuse(self, what: str, verb: str = "end") -> None:
        """Raise the error that says what to do."""
        raise TransactionManagementError(
            f"{what!r} would {verb} the transaction of this object on {self.connection.alias!r} before its end: run it "
            "apart, or use transaction=None"
        )

    def abandon(self) -> None:
        """Close this connection and its replacement, after `disarm` has returned true.

        An open connection would keep its locks, and another try would wait for them for ever.
        """
        if connections[self.connection.alias] is not self.connection:
            connections[self.connection.alias].close()
            connections[self.connection.alias] = self.connection
        if self.was_replaced():
            with suppress(Exception):  # each driver has its own for a connection that is closed already
                self.raw.close()


class TransientErrors(DatabaseErrorWrapper):
    """Remembers a transient error that a function catches, so that its object is tried again.

    A signal receiver that catches and logs every error hides a deadlock. The server has undone the work or refuses to
    go on, and the error that follows no longer says why. The same transaction may succeed if it is tried again. This
    replaces a connection's `wrap_database_errors`, which Django enters around every call of the driver.
    """

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
