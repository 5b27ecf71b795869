"""Refuses to end a function's transaction past Django, and notices if it was ended nevertheless.

A raw COMMIT, a driver's `commit()`, a driver's own context manager or a new connection end the transaction that Django
takes for open. Afterwards an exception does not undo what came before, and a COMMIT does not save it. A guard refuses
what it sees before it is sent, as Django refuses `connection.commit()`, so that nothing is lost. It notices the rest
when the function has returned, and the object is LOST.

    install() -> BEGIN -> arm() -> function -> disarm() -> COMMIT or ROLLBACK -> uninstall()
                                      |
                                      +-> driver -> check_statement(), check_end()

Each driver has a subclass in the module of its name. It knows which methods every statement passes through, and how the
driver shows that a transaction is open. No guard takes a round trip of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from typing import Any

from django.db import connections
from django.db.transaction import TransactionManagementError

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
_NO_STATEMENT = re.compile(
    r"\b[eE]'(?:[^'\\]|''|\\.)*'|'(?:[^']|'')*'|\"[^\"]*\"|`[^`]*`|(\$\w*\$).*?\1|--[^\n]*|/\*.*?\*/", re.DOTALL
)
_INNERMOST_COMMENT = re.compile(r"/\*(?:(?!/\*).)*?\*/", re.DOTALL)
_HAS_BODY = re.compile(rf"{_COMMENTS}(?:CREATE\b[^;]*\bBEGIN|BEGIN\s+NOT)\b", _FLAGS)
"""Statements with a body, whose statements run later or in a block of their own. PostgreSQL's `DO` has it in a string.
"""
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_HARMLESS = frozenset("DdFfIiSsUuVvWw")
"""First letters of the most frequent statements; no statement that ends a transaction begins with one."""

COMMITS_BEFORE = re.compile(
    rf"{_COMMENTS}"
    r"(?:ALTER|ANALYZE(?:\s+(?:LOCAL|NO_WRITE_TO_BINLOG))?\s+TABLE|BACKUP|BEGIN(?!\s+NOT)|CHECK"
    r"|CREATE(?!(?:\s+OR\s+REPLACE)?\s+TEMPORARY)|DROP(?!\s+(?:TEMPORARY|PREPARE)\b)|FLUSH|GRANT|LOCK|OPTIMIZE|RENAME"
    r"|REPAIR|RESET|REVOKE|SET\s+(?:(?:SESSION\s+)?(?:@@(?:SESSION\.)?)?AUTOCOMMIT|PASSWORD|DEFAULT\s+ROLE)"
    r"|START\s+TRANSACTION|TRUNCATE)\b",
    _FLAGS,
)
"""Statements before which MySQL and MariaDB commit. Limited to those that occur in per-object functions; what a stored
procedure does is not seen."""

_guards: dict[int, TransactionGuard] = {}
"""The installed guards, by the id of the driver's connection, which the guard keeps alive."""


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
    if text[:1] in _HARMLESS and ";" not in text:
        return False
    if text.count("/*") > 1 and not escapes and _ends_transaction(_without_comments(text)):
        return True  # PostgreSQL reads comments inside of comments, which the patterns below do not
    return _ends_transaction(text, escapes=escapes)


def _without_comments(text: str) -> str:
    while (shorter := _INNERMOST_COMMENT.sub(" ", text)) != text:
        text = shorter
    return text


def _ends_transaction(text: str, *, escapes: bool = False) -> bool:
    if _FIRST.match(text):
        return True
    if not _LATER.search(text):
        return False
    if escapes:
        text = _ESCAPED.sub("", text)
    text = _NO_STATEMENT.sub(" ", text)
    return bool(_LATER.search(text)) and not _HAS_BODY.match(text)


def guard_of(raw: Any) -> TransactionGuard | None:
    """Give the guard of a driver's connection, from before the BEGIN of an object's transaction to its end, or None."""
    return _guards.get(id(raw))


def armed_guard_of(raw: Any) -> TransactionGuard | None:
    """Give the guard of a driver's connection while a function runs inside the guarded transaction, or None."""
    guard = _guards.get(id(raw))
    return guard if guard is not None and guard.is_armed else None


def check_end(raw: Any, name: str) -> None:
    """Refuse a method of the driver that would end the transaction in which a function runs.

    Raises:
        TransactionManagementError: naming the statement or method.
    """
    guard = armed_guard_of(raw)
    if guard is not None:
        guard.refuse(name)


def refusing(method: Callable[..., Any], name: str | None = None) -> Any:
    """Give a method of a driver's connection, refused while a function runs inside its transaction."""
    name = name or f"{method.__name__}()"

    def end(raw: Any, *args: Any, **kwargs: Any) -> Any:
        check_end(raw, name)
        return method(raw, *args, **kwargs)

    return end


class LastStatement:
    """The last statement of a transaction, which is sent with its COMMIT, in one round trip.

    If it fails, the server does not come to the COMMIT.
    """

    has_failed = False
    """Whether the server has refused this statement, and not the COMMIT."""

    def __init__(self, text: str, explain: Callable[[BaseException], BaseException]) -> None:
        """`text` is ASCII. `explain` gives the error that stands for the database's, if the statement has failed."""
        self.text = text
        self.explain = explain


@cache
def guarded_cursor(base: Any, mixin: type) -> Any:
    """Give the driver's cursor class with the methods of `mixin` in front of its own."""
    if not isinstance(base, type) or issubclass(base, mixin):
        return base
    return type(base.__name__, (mixin, base), {})


class TransactionGuard:
    """Guards one transaction. `install` comes before its BEGIN, `uninstall` after its end; the function runs between
    `arm` and `disarm`."""

    ends: Callable[[str], bool] = staticmethod(ends_transaction)
    is_armed = False
    ended = False
    """The transaction was ended past Django: its work may be in the database or not."""
    rolled_back = False
    """The server has rolled it back with an error, so none of its work is left."""
    refused: str | None = None
    """The last statement or method that was refused. The function may have caught the error."""
    buffer: Any = None
    """The `WriteBuffer` whose rows may have to go before a statement, or None."""
    last: LastStatement | None = None
    """What goes with COMMIT. Only where `takes_last` is true, and as the last thing before `disarm`."""
    _outer: TransactionGuard | None = None
    _connect: Any = None
    _errors: Any = None
    _errors_before: Any = None

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.raw = connection.connection
        self.seen: set[int] = set()
        """Threads whose present statement has been shown to the guard, for drivers by which statements can pass it."""

    def install(self) -> None:
        """Watch the connection, right before BEGIN."""
        self._outer = _guards.get(id(self.raw))
        if self._outer is not None:
            # What a run inside an object sends may see rows that the object has not sent yet.
            self.buffer = self._outer.buffer
        _guards[id(self.raw)] = self
        self._errors_before = self.connection.wrap_database_errors
        self.connection.wrap_database_errors = self._errors = _remembering(self._errors_before)

    def arm(self) -> None:
        """Begin to refuse, right before the function runs."""
        self.is_armed = True
        self._connect = vars(self.connection).get("connect")
        self.connection.connect = partial(self.refuse, "connect()")

    def disarm(self) -> None:
        """Stop refusing, after the function has ended."""
        self.has_ended()
        self.put_back()
        self.is_armed = False
        # From here on it is for what COMMIT raises, and not for what the function has caught.
        self._errors.first = None
        if self._connect is None:
            vars(self.connection).pop("connect", None)
        else:
            self.connection.connect = self._connect

    def put_back(self) -> None:
        """Give Django back what the function has replaced.

        Blocks of `atomic()` end on the connection that `connections` has at that time. With `autocommit` set, Django
        sends no savepoint, and rolls back to none.
        """
        current = connections[self.connection.alias]
        if current is not self.connection:
            self.ended = True
            current.close()
            connections[self.connection.alias] = self.connection
        self.connection.autocommit = False

    def uninstall(self) -> None:
        """Leave the connection as it was, after COMMIT or ROLLBACK."""
        self.connection.wrap_database_errors = self._errors_before
        if self._outer is None:
            _guards.pop(id(self.raw), None)
        else:  # this run is inside the transaction of another run's object
            _guards[id(self.raw)] = self._outer
            self._outer.note_inner(self)

    @property
    def end_error(self) -> BaseException | None:
        """What the driver has raised first since `disarm`, from COMMIT itself and not from what follows it."""
        error: BaseException | None = self._errors.first
        return error

    def note_inner(self, inner: TransactionGuard) -> None:
        """Take over what a run inside this transaction has noticed."""
        self.ended |= inner.ended
        self.refused = inner.refused or self.refused
        if inner.rolled_back:
            self.note_rollback()
        self._errors.last = inner._errors.last or self._errors.last

    def has_ended(self) -> bool:
        """Whether the transaction is known to have been ended past Django."""
        if self.was_replaced() or (self.is_over() and not self.rolled_back):
            self.ended = True
        return self.ended

    def is_over(self) -> bool:
        """Whether the driver can tell that the transaction is no longer open."""
        return False

    def is_doomed(self) -> bool:
        """Whether the transaction can only be rolled back, as far as is known without a query."""
        return self.connection.needs_rollback or (self.connection.connection is not None and self.has_aborted())

    def has_transaction(self) -> bool:
        """Whether the driver can tell that a transaction is open on the connection that Django has now."""
        return False

    def has_aborted(self) -> bool:
        """Whether the driver can tell that the server would not commit."""
        return False

    def takes_last(self) -> bool:
        """Whether `last` would be sent with COMMIT, and not later than what is sent before it."""
        return False

    def watch_cursor(self, cursor: Any) -> None:
        """Have the statements of a driver's cursor shown to the guard, if it was made past the connection."""

    def was_replaced(self) -> bool:
        """Whether the Django wrapper has another driver connection by now."""
        return self.connection.connection is not self.raw

    def check_statement(self, statement: Any) -> None:
        """Refuse a statement that would end the transaction, or that follows its rollback by the server. Send first the
        buffered rows that it may see.

        Raises:
            TransactionManagementError: naming the statement or method.
        """
        if self.buffer is not None and self.buffer.is_sending:
            return
        if self.rolled_back:
            raise TransactionManagementError(
                f"the database has rolled back the transaction of this object on {self.connection.alias!r} with an "
                "error, so that nothing can follow in it: let that error end the function"
            )
        text = statement_text(statement)
        if self.ends(text):
            self.refuse(" ".join(text.split())[:40])
        if self.buffer is not None:
            self.buffer.before_statement(text, is_whole=isinstance(statement, str))

    def note_rollback(self) -> None:
        """Record that the server has rolled back the transaction with an error, which the function may catch.

        Later statements would run in no transaction, or in another one.
        """
        self.rolled_back = True
        self.connection.needs_rollback = True

    def refuse(self, what: str, verb: str = "end") -> None:
        """Raise the error that says what to do."""
        self.refused = what
        raise TransactionManagementError(
            f"{what!r} would {verb} the transaction of this object on {self.connection.alias!r} before its end: run it "
            "apart, or use transaction=None"
        )

    def abandon(self) -> None:
        """Close a driver's connection that was replaced, after its transaction was ended past Django.

        An open connection would keep its locks, and another try would wait for them for ever.
        """
        if self.was_replaced():
            with suppress(Exception):  # each driver has its own for a connection that is closed already
                self.raw.close()

    def add_transient_cause(self, error: BaseException) -> None:
        """Set a remembered transient error as the context of `error`, if the transaction can only be rolled back."""
        last = self._errors.last
        if last is None or not self.is_doomed() or is_transient(error):
            return
        *_, first = chain_of(error)
        if all(link is not error for link in chain_of(last)):  # a cycle would print without end
            set_context(first, last)


def _remembering(errors: Any) -> Any:
    """Give a copy of a connection's `wrap_database_errors`, which Django enters around every call of the driver. It
    remembers a transient error that a function catches, so that its object is tried again.

    A signal receiver that catches and logs every error hides a deadlock. The server has undone the work or refuses to
    go on, and the error that follows no longer says why. The same transaction may succeed if it is tried again.
    """
    cls = _remembering_class(type(errors))  # type: ignore[arg-type]  # mypy calls types unhashable
    copy = cls.__new__(cls)
    vars(copy).update(vars(errors), last=None, first=None)
    return copy


@cache
def _remembering_class(base: Any) -> Any:
    if hasattr(base, "remembers"):
        return base

    class TransientErrors(base):  # type: ignore[misc]  # whatever class the connection has there
        remembers = True
        first: BaseException | None

        def __exit__(self, *raised: object) -> Any:
            error: Any = raised[1]
            if error is None:
                return None
            if self.first is None:
                self.first = error
            if is_transient(error):
                self.last = error
            return super().__exit__(*raised)

    return TransientErrors
