"""Which tables a statement writes. Pure: the text of a statement in, names out.

It is for statements past the ORM, which are counted, and for databases that a dry run does not cover, where each write
is refused. So a statement of an unknown kind counts as a write.
"""

from __future__ import annotations

import re
from functools import lru_cache

_FLAGS = re.IGNORECASE | re.DOTALL
_NO_CODE = r"'(?:[^']|'')*'|(\$\w*\$).*?\1|--[^\n]*|/\*.*?\*/"
_PART = r'(?:"[^"]+"|`[^`]+`|\[[^\]]+\]|[\w$?]+)'
_NAME = rf"({_PART}(?:\s*\.\s*{_PART})*)"
_OR = r"(?:OR\s+\w+\s+)?"
_HINTS = r"(?:(?:LOW_PRIORITY|HIGH_PRIORITY|DELAYED|QUICK|IGNORE|ONLY)\s+)*"
_EXISTS = r"(?:IF\s+(?:NOT\s+)?EXISTS\s+)?(?:ONLY\s+)?"
_TARGET = re.compile(
    rf"\s*(?:(?:INSERT|REPLACE)\s+{_OR}{_HINTS}(?:INTO\s+)?|UPDATE\s+{_OR}{_HINTS}|DELETE\s+{_HINTS}FROM\s+(?:ONLY\s+)?"
    rf"|MERGE\s+INTO\s+(?:ONLY\s+)?|TRUNCATE\s+(?:TABLE\s+)?(?:ONLY\s+)?"
    rf"|(?:CREATE|ALTER|DROP|RENAME)\s+(?:\w+\s+)*?TABLE\s+{_EXISTS}){_NAME}",
    _FLAGS,
)
_INNER_TARGET = re.compile(
    rf"\b(?:INSERT\s+INTO\s+{_NAME}|UPDATE\s+(?:ONLY\s+)?{_NAME}\s+(?:AS\s+\w+\s+)?SET\b|DELETE\s+FROM\s+(?:ONLY\s+)?{_NAME}"
    rf"|MERGE\s+INTO\s+{_NAME})",
    _FLAGS,
)
"""In front of a `WITH` clause's end, or inside of it, where other words may look like a statement's beginning."""
_WORDS = re.compile(r"[\s(]*(\w+)(?:\s+(\w+))?")
READS = frozenset({
    "ANALYZE", "BEGIN", "CLOSE", "COMMIT", "DEALLOCATE", "DECLARE", "DESC", "DESCRIBE", "DISCARD", "END", "EXPLAIN",
    "FETCH", "LISTEN", "LOCK", "MOVE", "NOTIFY", "PRAGMA", "RELEASE", "RESET", "ROLLBACK", "SAVEPOINT", "SELECT", "SET",
    "SHOW", "START", "TABLE", "UNLISTEN", "USE", "VALUES",
})  # fmt: skip
"""First words of statements that write no rows. Functions that write behind a SELECT are not seen."""


@lru_cache(maxsize=500)
def written_tables(text: str, *, escapes: bool = False) -> tuple[str, ...]:
    """Give the tables that the statements of a text write, in their order; for an unknown kind its first words.

    With `escapes`, strings may contain backslash escapes, as in MySQL and MariaDB.
    """
    if escapes:
        text = re.sub(r"\\.", "", text, flags=re.DOTALL)
    return tuple(table for part in re.sub(_NO_CODE, " ", text, flags=_FLAGS).split(";") for table in _written(part))


def _written(statement: str) -> list[str]:
    words = _WORDS.match(statement)
    if words is None or words[1].upper() in READS:
        return []
    if words[1].upper() == "WITH":
        return [_unquoted(next(filter(None, match.groups()))) for match in _INNER_TARGET.finditer(statement)]
    target = _TARGET.match(statement)
    return [" ".join(filter(None, words.groups())) if target is None else _unquoted(target[1])]


def _unquoted(name: str) -> str:
    return ".".join(part.strip('"`[] ') for part in name.split("."))
