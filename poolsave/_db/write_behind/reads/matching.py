"""Which SELECTs cannot find a row that waits, although they read its table.

Code that saves asks for what is not there yet: `get_or_create()`, `validate_unique()`, `exists()`. If a column has to
equal a value that no waiting row has in it, the answer is the same as after these rows are sent.

That holds where Python's equality is the server's, for values that are sent as they are: integers, UUIDs and texts. A
text is compared without the spaces at its end, since `varchar(n)` drops those that are too many. A row that is changed
has other values at the server, so only its key tells it from others.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db.models.lookups import Exact, In
from django.db.models.sql import Query
from django.db.models.sql.where import AND

from ..fields import is_sent_unchanged, unchanged_types

if TYPE_CHECKING:
    from ..catalog import Catalog
    from ..sending import Entry

_LOOKUPS = ("django.db.models.lookups", "django.db.models.fields.related_lookups")
"""Modules of the look-ups that are known to compare with just their value."""
_SELECT = re.compile(r"\bSELECT\b", re.IGNORECASE)


class Condition(NamedTuple):
    """What every row that a query finds in a table fulfils: the column has one of the values."""

    table: str
    column: str
    values: Sequence[Any]


def conditions_of(query: Any, tables: Collection[str]) -> Iterator[Condition]:
    """Give the conditions on the one of these tables that the query names; none if it names two, or one twice."""
    if type(query) is not Query or query.combinator or query.extra or query.extra_tables:
        return
    where, joined = query.where, query.alias_refcount
    aliases = [alias for alias, each in query.alias_map.items() if joined[alias] and each.table_name in tables]
    if len(aliases) != 1 or where.connector != AND or where.negated:
        return
    table = query.alias_map[aliases[0]].table_name
    for child in where.children:
        if isinstance(child, Exact | In) and compares_column(child, aliases[0]):
            values = constants(child)
            if values:
                yield Condition(table, child.lhs.target.column, values)


def compares_column(lookup: Any, alias: str) -> bool:
    """Whether a look-up of Django's own compares a column of this table."""
    column = lookup.lhs
    is_column = type(column).__name__ == "Col" and type(column).__module__ == "django.db.models.expressions"
    return type(lookup).__module__ in _LOOKUPS and is_column and column.alias == alias


def constants(lookup: Any) -> Sequence[Any] | None:
    """Give the values of a look-up if they are sent as they are, else None."""
    rhs, unchanged = lookup.rhs, unchanged_types(lookup.lhs.target)
    if lookup.bilateral_transforms or hasattr(rhs, "resolve_expression"):
        return None
    values = [rhs] if isinstance(lookup, Exact) else [*rhs]
    return values if all(is_sent_unchanged(value, unchanged) for value in values) else None


def reads_once(text: str, table: str) -> bool:
    """Whether a statement of Django's has no subquery, and joins the table, which is quoted, no second time."""
    return len(_SELECT.findall(text)) == 1 and text.count(f"FROM {table}") + text.count(f"JOIN {table}") == 1


class WaitingValues:
    """The values that rows of a log, which may grow, have in some columns."""

    def __init__(self, log: list[Entry], catalog: Catalog) -> None:
        self.log, self._catalog = log, catalog
        self._columns: dict[tuple[str, str], _ColumnValues] = {}

    def exclude(self, condition: Condition) -> bool:
        """Whether no waiting row fulfils the condition, for certain."""
        name = condition.table, condition.column
        column = self._columns.get(name)
        if column is None:
            known = self._catalog.columns(condition.table).get(condition.column)
            column = self._columns[name] = _ColumnValues(*name, None if known is None else known.key_type)
        column.add(self.log)
        return column.is_known and all(
            type(value) is column.kind and _comparable(value) not in column.values for value in condition.values
        )


class _ColumnValues:
    def __init__(self, table: str, name: str, kind: type | None) -> None:
        self._table, self._name = table, name
        self.kind = kind
        self.is_known = kind is not None
        """Whether all values that rows have in the column are known."""
        self.values: set[Any] = set()
        self.seen = 0
        """Rows of the log whose values are here."""

    def add(self, log: list[Entry]) -> None:
        for plan, row, _object in log[self.seen :]:
            if plan.table == self._table:
                index = plan.known_columns.get(self._name)
                value = self if index is None else row[index]
                if type(value) is self.kind:
                    self.values.add(_comparable(value))
                elif value is not None:  # NULL equals nothing
                    self.is_known = False
        self.seen = len(log)


def _comparable(value: Any) -> Any:
    return value.rstrip(" ") if type(value) is str else value
