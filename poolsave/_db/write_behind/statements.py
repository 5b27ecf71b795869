"""What a statement does, as far as its text says. Pure: a text and the tables' names in, a `Statement` out.

A text is understood if it is one SELECT or UPDATE without literals, comments and locks that calls only functions of
PostgreSQL's own that read no table. Django writes such texts: its values are parameters. Whatever is not understood is
taken to see everything and to change anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

MAX_LENGTH = 20_000
"""Characters of a text that is looked at; a longer one is not understood."""
_NAMES = re.compile(r'"((?:[^"]|"")+)"(\s*\()?|([A-Za-z_][\w$]*)(\s*\()?')
_LOCKS = re.compile(r"\bFOR\s+(?:NO\s+KEY\s+UPDATE|UPDATE|KEY\s+SHARE|SHARE)\b", re.IGNORECASE)
_HEAD = re.compile(r"[\s(]*([A-Za-z]+)")
_OPAQUE = re.compile(r"'|--|/\*|\$\w*\$|&\"")
"""Literals, comments, and identifiers with escapes."""
_SEVERAL = re.compile(r";\s*\S")
_SAVEPOINTS = re.compile(r"(?:^|;)\s*(?:SAVEPOINT|RELEASE|ROLLBACK)\b", re.IGNORECASE)
_LAST_KEYS = re.compile(r"\b(?:currval|lastval)\s*\(", re.IGNORECASE)
_MOMENTS = re.compile(r"\bstatement_timestamp\b", re.IGNORECASE)
_SETTINGS = re.compile(r"\bset_config\s*\(", re.IGNORECASE)

_FIRST_WORDS = "SELECT INSERT UPDATE DELETE WITH VALUES TABLE MERGE LOCK SHOW FETCH CLOSE EXPLAIN"
READS_AND_WRITES = frozenset(_FIRST_WORDS.split())
"""First words of statements that leave the schema and the session's settings alone."""
_CALLED = """
    abs all and any array array_agg as ascii avg between bool_and bool_or by case cast ceil ceiling chr coalesce collate
    concat concat_ws count cross date date_part date_trunc distinct div else end exists exp extract filter floor from
    greatest group having ilike in interval is join json_agg json_build_object jsonb_agg jsonb_array_length
    jsonb_build_object lateral least left length like limit ln log lower lpad ltrim max md5 min mod not now nullif
    numeric offset on or order over overlay partition position power rank replace repeat reverse right round row
    row_number rpad rtrim select set sign sqrt statement_timestamp stddev_pop stddev_samp string_agg strpos substr
    substring sum then timestamp timestamptz to_char trim trunc union unnest upper using values var_pop var_samp varchar
    when where
"""
HARMLESS = frozenset(_CALLED.split())
"""Words that may stand before a parenthesis: keywords, and functions that read no table."""


class Effect(IntEnum):
    """What a statement can do, each more than the one before."""

    READS = 0
    """It reads the tables that it names."""
    WRITES = 1
    """It changes the table that it names, or locks rows."""
    ANYTHING = 2
    """It may see and change any row."""
    SETTINGS = 3
    """It may change the schema or the session's settings, too."""
    UNBUFFERED = 4
    """It tells or undoes what the server has been sent, which is not what the function has saved."""


class Statement(NamedTuple):
    """What a statement does."""

    effect: Effect
    relations: frozenset[str] = frozenset()
    """The tables and views that it names."""
    depends_on_rows: bool = False
    """Whether it reads, and gives something else only if their rows have changed."""


def understand(text: str | None, relations: Mapping[str, bool]) -> Statement:
    """Say what a statement does. `relations` are all tables and views, with whether rows can be inserted into them
    later. Without a text nothing is known of it."""
    if text is None or len(text) > MAX_LENGTH:
        return Statement(Effect.ANYTHING)
    head = _HEAD.match(text)
    word = head[1].upper() if head else ""
    if _SAVEPOINTS.search(text) or _LAST_KEYS.search(text):
        return Statement(Effect.UNBUFFERED)
    if word not in READS_AND_WRITES or _SETTINGS.search(text) or _SEVERAL.search(text):
        return Statement(Effect.SETTINGS)
    named = None if _OPAQUE.search(text) or word not in ("SELECT", "UPDATE") else _relations_in(text, relations)
    if named is None:
        return Statement(Effect.ANYTHING)
    if word == "UPDATE" or _LOCKS.search(text):
        return Statement(Effect.WRITES, named)
    return Statement(Effect.READS, named, depends_on_rows=not _MOMENTS.search(text))


def _relations_in(text: str, relations: Mapping[str, bool]) -> frozenset[str] | None:
    """Give the tables that are named, or None if there is a function or a relation that can do more than a plain
    table."""
    named = set()
    for quoted, called, word, word_called in _NAMES.findall(text):
        name = _name_in(relations, quoted, word)
        if name is None:
            if called or (word_called and word.lower() not in HARMLESS):
                return None
        elif not relations[name]:
            return None
        else:
            named.add(name)
    return frozenset(named)


def _name_in(relations: Mapping[str, bool], quoted: str, word: str) -> str | None:
    for name in (quoted.replace('""', '"'),) if quoted else (word, word.lower()):
        if name in relations:
            return name
    return None
