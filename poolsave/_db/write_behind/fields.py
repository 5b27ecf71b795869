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
from inspect import getattr_static
from typing import Any

from django.db import models
from django.db.models.fields.related_descriptors import ForeignKeyDeferredAttribute
from django.db.models.query_utils import DeferredAttribute

Row = list[Any]

MAX_CHARACTERS = 10_000
"""Length of a text that is buffered; longer ones would fill the memory."""
MAX_KNOWN_TYPES = 100
"""Classes, and rows of types, for which it is remembered how they are read."""
CANNOT_WAIT: Any = object()
"""In the place of a value that the server computes, or that is too long."""


class FieldReader:
    """Reads a field's value as Django's compilers do."""

    __slots__ = ("_connection", "_placed", "_prepare", "attribute", "pre_save", "unchanged")

    def __init__(self, field: Any, connection: Any, compiler: Any) -> None:
        self.pre_save, self._prepare, self._connection = field.pre_save, field.get_db_prep_save, connection
        self.unchanged = unchanged_types(field)
        self.attribute: str | None = field.attname if _saves_attribute(field) else None
        """The attribute of an instance that `pre_save` gives, if it does nothing else."""
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


class RowReader:
    """Reads the rows of some fields. What has to be done for values of the same types is looked up once."""

    def __init__(self, fields: Sequence[Any], connection: Any, compiler: Any) -> None:
        self._readers = [FieldReader(field, connection, compiler) for field in fields]
        self._names: dict[type, list[str | None]] = {}
        """By class and field: the key in an instance's dictionary under which is what `pre_save` gives, or None."""
        self._steps: dict[tuple[type, ...], list[tuple[int, Callable[[Any], bool], Callable[[Any], Any]]]] = {}
        """By the types of a row's values: which of them may be sent as another one."""

    def row(self, instance: Any, pre_saved: list[Any]) -> Row | None:
        """Read the row as it is now, or give None if one of the values cannot wait.

        What `pre_save` gives is added to `pre_saved`, since it may only be called once.
        """
        names = self._names.get(type(instance))
        if names is None:
            names = self._names[type(instance)] = self._names_for(type(instance))
        attributes = instance.__dict__
        try:
            row = [attributes[name] for name in names]
        except KeyError:
            return self._row_by_steps(instance, names, pre_saved)
        pre_saved += row
        return row if self.prepare(row) else None

    def _row_by_steps(self, instance: Any, names: Sequence[str | None], pre_saved: list[Any]) -> Row | None:
        # A field's `pre_save` may see what was done for those before it, and is not called after an error of theirs.
        row, attributes = [], instance.__dict__
        for reader, name in zip(self._readers, names, strict=True):
            value = attributes[name] if name in attributes else reader.pre_save(instance, True)
            pre_saved.append(value)
            sent = value if is_sent_unchanged(value, reader.unchanged) else reader.prepared(value)
            if sent is CANNOT_WAIT:
                return None
            row.append(sent)
        return row

    def _names_for(self, kind: type) -> list[str | None]:
        if len(self._names) >= MAX_KNOWN_TYPES:
            self._names.clear()
        attributes = [reader.attribute for reader in self._readers]
        return [name if name is not None and _is_kept_in_dict(kind, name) else None for name in attributes]

    def prepare(self, row: Row) -> bool:
        """Put in place of the values what is sent for them; says whether all of them can wait."""
        kinds = tuple(map(type, row))
        steps = self._steps.get(kinds)
        if steps is None:
            steps = self._steps[kinds] = self._steps_for(kinds)
        for index, is_unchanged, prepared in steps:
            if not is_unchanged(row[index]):
                row[index] = prepared(row[index])
                if row[index] is CANNOT_WAIT:
                    return False
        return True

    def _steps_for(self, kinds: Sequence[type]) -> list[Any]:
        if len(self._steps) >= MAX_KNOWN_TYPES:
            self._steps.clear()
        steps = []
        for index, (reader, kind) in enumerate(zip(self._readers, kinds, strict=True)):
            is_unchanged = CHECKS.get(kind) if kind in reader.unchanged else _never
            if is_unchanged is not None:
                steps.append((index, is_unchanged, reader.prepared))
        return steps


def is_sent_unchanged(value: Any, unchanged: frozenset[type]) -> bool:
    """Whether a value is sent as it is, and is short enough to wait. `unchanged` are its field's types."""
    kind = type(value)
    return kind in unchanged and (kind not in CHECKS or CHECKS[kind](value))


def unchanged_types(field: Any) -> frozenset[type]:
    """Give the types whose values Django sends as they are. Only for classes of its own, whose methods are known."""
    if type(field).__module__ not in _DJANGOS_FIELDS:
        return frozenset()
    if isinstance(field, models.ForeignKey):
        return unchanged_types(field.target_field)
    return next((types for base, types in UNCHANGED.items() if isinstance(field, base)), frozenset())


UNCHANGED: dict[type, frozenset[type]] = {
    models.CharField: frozenset({str, type(None)}),
    models.TextField: frozenset({str, type(None)}),
    models.BooleanField: frozenset({bool, type(None)}),
    models.IntegerField: frozenset({int, type(None)}),
    models.DecimalField: frozenset({decimal.Decimal, type(None)}),
    models.FloatField: frozenset({float, type(None)}),
    models.UUIDField: frozenset({uuid.UUID, type(None)}),
    models.DateTimeField: frozenset({dt.datetime, type(None)}),
    models.DateField: frozenset({dt.date, type(None)}),  # after its subclass
}
_DJANGOS_FIELDS = ("django.db.models.fields", "django.db.models.fields.related")


def _is_short(value: str) -> bool:
    return len(value) <= MAX_CHARACTERS


def _is_aware(value: dt.datetime) -> bool:
    return value.utcoffset() is not None  # Django warns of others


def _never(_value: Any) -> bool:
    return False


CHECKS: dict[type, Callable[[Any], bool]] = {
    str: _is_short,
    dt.datetime: _is_aware,
    decimal.Decimal: decimal.Decimal.is_finite,  # Django refuses others
}
"""What values of a field's types fulfil that are sent as they are."""


def _saves_attribute(field: Any) -> bool:
    """Whether `pre_save` gives an attribute, and does nothing else."""
    sets_itself = getattr(field, "auto_now", False) or getattr(field, "auto_now_add", False)
    return type(field).__module__ in _DJANGOS_FIELDS and "pre_save" not in vars(field) and not sets_itself


def _is_kept_in_dict(kind: type, name: str) -> bool:
    """Whether a class reads an attribute from the instance's dictionary, if it is there."""
    descriptor = type(getattr_static(kind, name, None))
    return getattr_static(kind, "__getattribute__") is object.__getattribute__ and descriptor in (
        DeferredAttribute,
        ForeignKeyDeferredAttribute,
    )


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


def as_sql(value: Any) -> str:
    """Give the literal of a value of a type in `WRITERS`."""
    return WRITERS[type(value)](value)


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
