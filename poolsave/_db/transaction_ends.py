"""Which statements end a transaction. Pure: the text of a statement in, the reason to refuse it out.

Sources: PostgreSQL's and SQLite's "COMMIT", "END", "ROLLBACK"; PostgreSQL's "PREPARE TRANSACTION"; MariaDB's
"SQL statements that cause an implicit commit".
"""

from __future__ import annotations

import re
from typing import Any

_COMMENTS = r"(?:\s|/\*(?!!).*?\*/|--[^\n]*\n|#[^\n]*\n)*+"
"""Possessive: a long row of comments is not looked through again and again for other ways to part it."""
_FLAGS = re.IGNORECASE | re.DOTALL
_ENDS = r"(?:ABORT|COMMIT|PREPARE\s+TRANSACTION|ROLLBACK(?!\s+(?:WORK\s+|TRANSACTION\s+)?TO\b))\b"
_END = r"END\s*(?:WORK|TRANSACTION|AND|;|$)"
_FIRST = re.compile(f"{_COMMENTS}(?:{_ENDS}|{_END})", _FLAGS)
_LATER = re.compile(f";{_COMMENTS}(?:{_ENDS}|{_END})", _FLAGS)
_NO_STATEMENT = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|`[^`]*`|(\$\w*\$).*?\1|--[^\n]*|/\*.*?\*/", re.DOTALL)
_HAS_BODY = re.compile(rf"{_COMMENTS}(?:CREATE|DO|BEGIN)\b", _FLAGS)
"""The statements inside of these run later, or in a block of their own."""
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_HARMLESS = frozenset("DdFfIiSsUuVvWw")
"""First letters of what most statements are, and none of those that end a transaction is."""

COMMITS_BEFORE = re.compile(
    rf"{_COMMENTS}"
    r"(?:ALTER|ANALYZE(?:\s+(?:LOCAL|NO_WRITE_TO_BINLOG))?\s+TABLE|BEGIN(?!\s+NOT)"
    r"|CREATE(?!(?:\s+OR\s+REPLACE)?\s+TEMPORARY)|DROP(?!\s+TEMPORARY)|GRANT|LOCK|OPTIMIZE|RENAME"
    r"|REPAIR|REVOKE|SET\s+(?:SESSION\s+)?(?:@@(?:SESSION\.)?)?AUTOCOMMIT|START\s+TRANSACTION|TRUNCATE)\b",
    _FLAGS,
)
"""What MySQL and MariaDB commit before. Not complete, and blind for what a stored procedure does: for those that people
put into per-object functions."""


def text_of(statement: Any) -> str:
    """The text of a statement, of which only keywords matter; empty for what drivers compose themselves."""
    if isinstance(statement, str):
        return statement
    if isinstance(statement, bytes | bytearray):
        return statement.decode("latin-1")
    parts = getattr(statement, "_obj", getattr(statement, "_wrapped", ""))  # of both psycopgs
    if isinstance(parts, list):  # sql.Composed
        return "".join(map(text_of, parts))
    return parts if type(statement).__name__ == "SQL" and isinstance(parts, str) else "?"


def ends_transaction(text: str, *, escapes: bool = False) -> bool:
    """Whether the statement, or one of several in the same text, ends the transaction that is open. With `escapes` a
    string may have quotes behind backslashes, as those of MySQL and MariaDB."""
    if text[:1] not in _HARMLESS and _FIRST.match(text):
        return True
    if ";" not in text or not _LATER.search(text):
        return False
    if _HAS_BODY.match(text):
        return False
    if escapes:
        text = _ESCAPED.sub("", text)
    return bool(_LATER.search(_NO_STATEMENT.sub(" ", text)))
