"""How a model's rows are inserted later: which INSERTs can wait, and what their rows are made of.

An INSERT can wait if its caller gets nothing from the server but the primary key, and the key can be had beforehand:
from the table's sequence, or from the instance. Values that the server computes, and placeholders of a field's own,
cannot wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from django.db import models
from django.db.models.constants import OnConflict

from .catalog import Catalog
from .fields import CANNOT_WAIT, FieldReader, Row
from .literals import row_as_sql

MAX_OBJECTS = 100
"""Objects of one INSERT that is buffered; larger ones gain nothing from it."""


class InsertPlan:
    """The INSERTs into one table with the same columns, which become one statement."""

    def __init__(self, query: Any, returning: list[Any], catalog: Catalog, connection: Any) -> None:
        meta = query.get_meta()
        self._query_key = _key_of(query, returning)
        self._connection = connection
        compiler = query.get_compiler(connection=connection)
        self._fields = [FieldReader(field, connection, compiler) for field in query.fields]
        self.table: str = meta.db_table
        self.ignores_conflicts = query.on_conflict is not None
        self.sequence: str | None = None
        self.columns = [field.column for field in query.fields]
        self.key_index = self.columns.index(meta.pk.column) if meta.pk in query.fields else None
        self.is_possible = _can_wait(query, returning) and catalog.is_plain(self.table)
        if self.is_possible and self.key_index is None and not self.ignores_conflicts:
            self._draw_keys(meta.pk, catalog)

    def _draw_keys(self, key: Any, catalog: Catalog) -> None:
        column = catalog.columns(self.table).get(key.column)
        self.sequence = column.sequence if column is not None and not key.get_db_converters(self._connection) else None
        self.is_possible = self.sequence is not None
        self.columns.insert(0, key.column)
        self.key_index = 0

    def fits(self, query: Any, returning: list[Any]) -> bool:
        """Whether the plan is that of this query."""
        return bool(self._query_key == _key_of(query, returning))

    def rows(self, instances: Iterable[Any], next_key: Callable[[str], int], pre_saved: list[Any]) -> list[Row] | None:
        """Make the rows as they are now, or give None if one has a value that cannot wait.

        What `pre_save` gives is added to `pre_saved`, by instance and field, since it may only be called once.
        """
        rows = []
        for instance in instances:
            row: Row = []
            for reader in self._fields:
                pre_saved.append(value := reader.pre_save(instance, True))
                row.append(value := reader.prepared(value))
                if value is CANNOT_WAIT:
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


class InsertPlans:
    """The plans of one connection, as long as its catalog holds."""

    def __init__(self, catalog: Catalog, connection: Any) -> None:
        self._catalog, self._connection = catalog, connection
        self._plans: dict[Any, list[InsertPlan]] = {}

    def find(self, query: Any, returning: list[Any]) -> InsertPlan | None:
        """Give the plan of a query, or None if its rows cannot wait."""
        if query.raw or len(query.objs) > MAX_OBJECTS:
            return None
        plans = self._plans.setdefault(query.model, [])
        for plan in plans:
            if plan.fits(query, returning):
                return plan if plan.is_possible else None
        plans.append(InsertPlan(query, returning, self._catalog, self._connection))
        return plans[-1] if plans[-1].is_possible else None


def _key_of(query: Any, returning: list[Any]) -> tuple[Any, ...]:
    return list(query.fields), query.on_conflict, returning, query.update_fields, query.unique_fields


def _can_wait(query: Any, returning: list[Any]) -> bool:
    meta = query.get_meta()
    return (
        query.on_conflict in (None, OnConflict.IGNORE)
        and not query.unique_fields
        and returning in ([], [meta.pk])
        and not (returning and query.on_conflict)
        and not isinstance(meta.pk, models.CompositePrimaryKey)
        and bool(query.fields)
    )
