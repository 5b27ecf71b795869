"""How the UPDATEs of `save()` are sent later: those that set plain values in the row with a given key.

Its caller is told that one row was changed. When the rows are sent, the statement counts them, and fails if there are
fewer: a row was not there. Then the chunk is undone, and the table's UPDATEs do not wait any more. The same happens if
a column of a unique index has changed, since it matters then in which order rows change; and if a value is of another
type than the column.

Values reach a column by assignment, as in a single UPDATE, where a text that is too long is an error. A cast would cut
it. Nor are they cast to give VALUES its types: a row of typed NULLs comes first, which equals no row of the table.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from django.db.models.lookups import Exact
from django.db.models.sql import UpdateQuery

from .catalog import Catalog
from .fields import Row, RowReader, is_sent_unchanged, row_as_sql, unchanged_types

COUNT_IS_WRONG = "22012"
"""The SQLSTATE of a division by zero, by which a statement fails that has not changed all its rows."""
TYPES_DIFFER = "42804"
"""The SQLSTATE of a value that VALUES does not take for the column's type. An assignment takes some of them."""


class UpdatePlan:
    """The UPDATEs of one table that set the same columns, which become one statement."""

    sequence = None

    def __init__(self, model: Any, fields: Sequence[Any], catalog: Catalog, connection: Any) -> None:
        table, key = model._meta.db_table, model._meta.pk
        compiler = UpdateQuery(model).get_compiler(connection=connection)
        self._connection = connection
        self.table, self.fields = table, list(fields)
        self._reader = RowReader((key, *fields), connection, compiler)
        self._key_types = unchanged_types(key)
        self._names = [field.column for field in (key, *fields)]
        self.key: str = key.column
        self.known_columns = {self.key: 0}
        """Where in a row the values are by which it can be told from others, before and after the change."""
        is_plain = catalog.is_plain(table) and not catalog.has_odd_unique_index(table) and key not in fields
        columns = catalog.columns(table) if is_plain else {}
        self.is_possible = columns.keys() >= {*self._names}
        if self.is_possible:
            self._nulls = ", ".join(columns[name].null for name in self._names)
            self._key_type = columns[key.column].key_type
            self.is_possible = not any(columns[name].reads_by_fields for name in self._names)
            self._unique = [name for name in self._names[1:] if columns[name].is_unique]

    def row(self, key: Any, values: Sequence[Any]) -> Row | None:
        """Make the row, or give None if one of the values cannot wait."""
        row: Row = [key, *values]
        if not self._reader.prepare(row):
            return None
        # Changes of one row are told by its key, whose equality has to be the server's.
        return row if type(row[0]) is self._key_type else None

    def takes_key(self, key: Any) -> bool:
        """Whether Django, asked for the row with this key, asks the server for just this value."""
        return type(key) is self._key_type and is_sent_unchanged(key, self._key_types)

    def identity(self, row: Row) -> tuple[str, str | None, Any]:
        """Give the table, column and value by which the row is found."""
        return self.table, self.key, row[0]

    def statement(self, rows: list[Row]) -> str:
        """Give the UPDATE of these rows, which fails if it does not change all of them."""
        quote = self._connection.ops.quote_name
        key, *others = names = [*map(quote, self._names)]
        values = "), (".join([self._nulls, *map(row_as_sql, rows)])
        changes = ", ".join(f"{name} = new.{name}" for name in others)
        same = "".join(f" AND old.{name} IS NOT DISTINCT FROM new.{name}" for name in map(quote, self._unique))
        update = (
            f"UPDATE {quote(self.table)} AS old SET {changes} FROM (VALUES ({values})) AS new ({', '.join(names)}) "  # noqa: S608
            f"WHERE old.{key} = new.{key}{same} RETURNING 1"
        )
        return f"WITH changed AS ({update}) SELECT 1 / (CASE count(*) WHEN {len(rows)} THEN 1 ELSE 0 END) FROM changed"  # noqa: S608


class UpdatePlans:
    """The plans of one connection, as long as its catalog holds."""

    def __init__(self, catalog: Catalog, refused: Collection[str], connection: Any) -> None:
        """Refuse the tables in `refused`, which may grow."""
        self._catalog, self._refused, self._connection = catalog, refused, connection
        self._plans: dict[Any, list[UpdatePlan]] = {}

    def find(self, model: Any, values: Sequence[tuple[Any, Any, Any]]) -> UpdatePlan | None:
        """Give the plan by which rows get these values, which Django has by field; None if they cannot wait."""
        if model._meta.db_table in self._refused:
            return None
        fields = [field for field, _model, _value in values]
        plans = self._plans.setdefault(model, [])
        for plan in plans:
            if plan.fields == fields:
                return plan if plan.is_possible else None
        plans.append(UpdatePlan(model, fields, self._catalog, self._connection))
        return plans[-1] if plans[-1].is_possible else None


def key_of(query: Any) -> Any:
    """Give the key in the condition of a query for which there is a plan."""
    return query.where.children[0].rhs


def sets_values_by_key(query: Any) -> bool:
    """Whether a query sets values in the row with one key, and does nothing else."""
    where, kind = query.where, type(query)
    if kind is not UpdateQuery or query.related_updates or not query.values or query.is_sliced:
        return False
    if len(query.alias_map) != 1 or len(where.children) != 1 or where.negated:
        return False
    (condition,) = where.children
    return (
        isinstance(condition, Exact)
        and type(condition).__module__ == Exact.__module__
        and getattr(condition.lhs, "target", None) is query.get_meta().pk
        and type(condition.lhs).__name__ == "Col"
    )
