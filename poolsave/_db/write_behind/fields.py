"""The values of a row that waits: as Django prepares them, and as they are at this moment."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from django.db import models

from .literals import composed, frozen

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
