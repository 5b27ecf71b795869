"""Which statements end a transaction. Pure: the text of a statement in, the reason to refuse it out.

Sources: PostgreSQL's and SQLite's "COMMIT", "END", "ROLLBACK"; PostgreSQL's "PREPARE TRANSACTION"; MariaDB's
"SQL statements that cause an implicit commit".
"""

from __future__ import annotations

import re
from typing import Any

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
