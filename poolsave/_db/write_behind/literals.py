"""Values as SQL, in the form that the drivers give them. For a few exact types without the driver, which takes longer.

It relies on `standard_conforming_strings`, without which a backslash would escape the quote after it. `why_unbuffered`
in `write_behind.py` looks at that setting.
"""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from collections.abc import Callable, Sequence
from typing import Any


class Literal(str):
    """A value that is SQL already."""

    __slots__ = ()


def frozen(value: Any, connection: Any) -> Any:
    """Give the value itself if it is of an immutable type that `as_sql` knows, else what the driver makes of it now.

    Raises what the driver raises for a value that it cannot adapt.
    """
    kind = type(value)
    if kind in WRITERS:
        return value
    if isinstance(value, int) and kind.__module__ == "psycopg.types.numeric":  # as Django marks integers by their size
        return int(value)
    return composed("%s", [value], connection)


def composed(text: str, values: Sequence[Any], connection: Any) -> Literal:
    """Give what the driver makes of a text with placeholders, and the errors that Django makes of the driver's."""
    with connection.wrap_database_errors:
        return Literal(connection.ops.compose_sql(text, values))


def row_as_sql(row: Sequence[Any]) -> str:
    """Give the values of a row, between commas."""
    return ", ".join([WRITERS[type(value)](value) for value in row])


def _text(value: str) -> str:
    if "\0" in value:
        raise ValueError("a string literal cannot contain NUL (0x00) characters")
    return "'" + value.replace("'", "''") + "'"


def _float(value: float) -> str:
    # NaN and infinities differ from themselves. Without a type, they leave that of the other rows' values alone.
    return repr(value) if value - value == 0 else f"'{value}'"


def _decimal(value: decimal.Decimal) -> str:
    return str(value) if value.is_finite() else f"'{value}'::numeric"


def _moment(value: dt.datetime) -> str:
    return f"'{value}'::timestamp" if value.tzinfo is None else f"'{value}'::timestamptz"


def _bool(value: bool) -> str:
    return "true" if value else "false"


def _null(_value: None) -> str:
    return "NULL"


WRITERS: dict[type, Callable[[Any], str]] = {
    Literal: str,
    str: _text,
    int: str,
    bool: _bool,
    type(None): _null,
    float: _float,
    decimal.Decimal: _decimal,
    dt.datetime: _moment,
    dt.date: lambda value: f"'{value}'::date",
    uuid.UUID: lambda value: f"'{value}'::uuid",
}
