"""How a model's rows are inserted later: which INSERTs can wait, and what their rows are made of.

An INSERT can wait if its caller gets nothing from the server but the primary key, and the key can be had beforehand:
from the table's sequence, or from the instance. Values that the server computes, and placeholders of a field's own,
cannot wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from django.db import models
from django.db.models.constants import OnConflict
from django.db.models.sql import InsertQuery

from .catalog import Catalog
from .fields import Row, RowReader, row_as_sql

MAX_OBJECTS = 100
"""Objects of one INSERT that is buffered; larger ones gain nothing from it."""


class InsertKind(NamedTuple):
    """What the INSERTs that become one statement have in common."""

    model: Any
    fields: Sequence[Any]
    returning: Sequence[Any]
    on_conflict: OnConflict | None = None
    update_fields: Sequence[Any] | None = None
    unique_fields: Sequence[Any] | None = None

    def can_wait(self) -> bool:
        """Whether such an INSERT asks the server for no more than a key that can be had beforehand."""
        key = self.model._meta.pk
        return (
            self.on_conflict in (None, OnConflict.IGNORE)
            and not self.unique_fields
            and self.returning in ([], [key])
            and not (self.returning and self.on_conflict)
            and not isinstance(key, models.CompositePrimaryKey)
            and bool(self.fields)
        )


def kind_of(query: Any, returning: list[Any]) -> InsertKind:
    """Give the kind of Django's query."""
    return InsertKind(query.model, query.fields, returning, query.on_conflict, query.update_fields, query.unique_fields)


class InsertPlan:
    """The INSERTs into one table with the same columns, which become one statement."""

    def __init__(self, kind: InsertKind, catalog: Catalog, connection: Any) -> None:
        meta, fields = kind.model._meta, [*kind.fields]
        self.kind = kind._replace(fields=fields)
        self._connection = connection
        compiler = InsertQuery(kind.model).get_compiler(connection=connection)
        self._reader = RowReader(fields, connection, compiler)
        self.table: str = meta.db_table
        self.ignores_conflicts = kind.on_conflict is not None
        self.sequence: str | None = None
        self.columns = [field.column for field in fields]
        self.key_index = self.columns.index(meta.pk.column) if meta.pk in fields else None
        self.is_possible = kind.can_wait() and catalog.is_plain(self.table)
        if self.is_possible and self.key_index is None and not self.ignores_conflicts:
            self._draw_keys(meta.pk, catalog)
        self.known_columns = {name: index for index, name in enumerate(self.columns)}
        """Where in a row the values are that its columns will have."""

    def _draw_keys(self, key: Any, catalog: Catalog) -> None:
        column = catalog.columns(self.table).get(key.column)
        self.sequence = column.sequence if column is not None and not key.get_db_converters(self._connection) else None
        self.is_possible = self.sequence is not None
        self.columns.insert(0, key.column)
        self.key_index = 0

    def rows(self, instances: Iterable[Any], next_key: Callable[[str], int], pre_saved: list[Any]) -> list[Row] | None:
        """Make the rows as they are now, or give None if one has a value that cannot wait.

        What `pre_save` gives is added to `pre_saved`, by instance and field, since it may only be called once.
        """
        rows = []
        for instance in instances:
            row = self._reader.row(instance, pre_saved)
            if row is None:
                return None
            rows.append(row)
        if self.sequence is not None:
            for row in rows:
                row.insert(0, next_key(self.sequence))
        return rows

    def keys(self, rows: list[Row]) -> list[tuple[Any]]:
        """Give the primary keys of the rows, as the server would return them."""
        assert self.key_index is not None
        return [(row[self.key_index],) for row in rows]

    def identity(self, row: Row) -> tuple[str, str | None, Any]:
        """Give the table, column and value by which a change would find the row; neither is known without a key."""
        index = self.key_index
        return (self.table, None, None) if index is None else (self.table, self.columns[index], row[index])

    def statement(self, rows: list[Row]) -> str:
        """Give the INSERT of these rows."""
        quote = self._connection.ops.quote_name
        columns, values = ", ".join(map(quote, self.columns)), "), (".join(map(row_as_sql, rows))
        ending = " ON CONFLICT DO NOTHING" if self.ignores_conflicts else ""
        return f"INSERT INTO {quote(self.table)} ({columns}) VALUES ({values}){ending}"  # noqa: S608  quoted above

    def statement_for_new(self, rows: list[Row]) -> str:
        """Give the INSERT of those of the rows that meet none that is there; it returns their keys."""
        assert self.key_index is not None
        key = self._connection.ops.quote_name(self.columns[self.key_index])
        return f"{self.statement(rows)} ON CONFLICT DO NOTHING RETURNING {key}"


class InsertPlans:
    """The plans of one connection, as long as its catalog holds."""

    def __init__(self, catalog: Catalog, connection: Any) -> None:
        self._catalog, self._connection = catalog, connection
        self._plans: dict[Any, list[InsertPlan]] = {}

    def find(self, kind: InsertKind) -> InsertPlan | None:
        """Give the plan of a kind, or None if its rows cannot wait."""
        plans = self._plans.setdefault(kind.model, [])
        for plan in plans:
            if plan.kind == kind:
                return plan if plan.is_possible else None
        plans.append(InsertPlan(kind, self._catalog, self._connection))
        return plans[-1] if plans[-1].is_possible else None
