"""The values of a row that waits: as Django prepares them, as they are at this moment, and as SQL.

Their SQL has the form that the drivers give it, for a few exact types without the driver, which takes longer. It relies
on `standard_conforming_strings`, without which a backslash would escape the quote after it. `why_unbuffered` in
`write_behind.py` looks at that setting.
"""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from django.db import models

Row = list[Any]

MAX_CHARACTERS = 10_000
"""Length of a text that is buffered; longer ones would fill the memory."""
CANNOT_WAIT: Any = object()
"""In the place of a value that the server computes, or that is too long."""


class FieldReader:
    """Reads a field's value as Django's compilers do."""

    __slots__ = ("_connection", "_placed", "_prepare", "pre_save", "unchanged")

    def __init__(self, field: Any, connection: Any, compiler: Any) -> None:
        self.pre_save, self._prepare, self._connection = field.pre_save, field.get_db_prep_save, connection
        self.unchanged = unchanged_types(field)
        self._placed: Callable[[Any], tuple[str, Any]] | None = None
        """Gives the SQL and the parameters of a value, for fields with a placeholder of their own."""
        if hasattr(field, "get_placeholder_sql"):
            self._placed = lambda value: field.get_placeholder_sql(value, compiler, connection)
        elif hasattr(field, "get_placeholder"):
            self._placed = lambda value: (field.get_placeholder(value, compiler, connection), [value])

    def prepared(self, value: Any) -> Any:
        """Give what is sent for a value, which is another one."""
        if hasattr(value, "resolve_expression") or hasattr(value, "prepare_database_save"):
            return CANNOT_WAIT
        value = self._prepare(value, connection=self._connection)
        if hasattr(value, "as_sql"):
            return CANNOT_WAIT
        if self._placed is None:
            value = frozen(value, self._connection)
        else:
            value = composed(*self._placed(value), self._connection)
        return CANNOT_WAIT if isinstance(value, str) and len(value) > MAX_CHARACTERS else value


def is_sent_unchanged(value: Any, unchanged: frozenset[type]) -> bool:
    """Whether a value is sent as it is, and is short enough to wait. `unchanged` are its field's types."""
    kind = type(value)
    return kind in unchanged and (kind is not str or len(value) <= MAX_CHARACTERS)


def unchanged_types(field: Any) -> frozenset[type]:
    """Give the types whose values Django sends as they are. Only for classes of its own, whose methods are known."""
    kind = type(field)
    if kind.__module__ not in ("django.db.models.fields", "django.db.models.fields.related"):
        return frozenset()
    if isinstance(field, models.ForeignKey):
        return unchanged_types(field.target_field)
    return next((types for base, types in UNCHANGED.items() if isinstance(field, base)), frozenset())


UNCHANGED: dict[type, frozenset[type]] = {
    models.CharField: frozenset({str, type(None)}),
    models.TextField: frozenset({str, type(None)}),
    models.BooleanField: frozenset({bool, type(None)}),
    models.IntegerField: frozenset({int, type(None)}),
    models.UUIDField: frozenset({uuid.UUID, type(None)}),
}


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
