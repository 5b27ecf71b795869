"""Recognizes a query that was compiled for an earlier object, so that its answer is found without compiling it again.

Django makes a statement of a query in more time than it takes to look the answer up. Two queries of a model give the
same statement if they have the same attributes. Here that is said only of simple ones, such as those of `get()` and
`first()`: the columns of one table equal values that are sent as they are, and nothing else was asked for.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db.models.lookups import Exact
from django.db.models.sql import Query
from django.db.models.sql.datastructures import BaseTable
from django.db.models.sql.where import AND, WhereNode

from .matching import compares_column, constants

if TYPE_CHECKING:
    from .repeated import Question

_PLAIN = {**vars(Query), **vars(Query(None))}
"""The attributes of a query that asks for nothing but all rows."""
_IN_KEY = {"model", "alias_map", "where", "order_by", "default_ordering", "low_mark", "high_mark"}
_WITHOUT_EFFECT = {"alias_refcount", "table_map", "used_aliases", "filter_is_sticky", "base_table", "_lookup_joins"}
"""Attributes that say only how to go on building a query, where it reads one table."""
_MAY_DIFFER = _IN_KEY | _WITHOUT_EFFECT


@dataclass(slots=True)
class Compiled:
    """What Django has made of a query."""

    question: Question
    state: dict[str, Any]
    """The attributes that its compiler has afterwards."""
    converters: dict[int, Any] | None = None
    """What makes Python's values of the columns, after it was asked for."""


def key_of(query: Any) -> Hashable | None:
    """Give a key that only queries have that are compiled alike, or None if that is not certain."""
    if type(query) is not Query or type(query.where) is not WhereNode or len(query.alias_map) != 1:
        return None
    for name, value in vars(query).items():
        if name not in _MAY_DIFFER and value != _PLAIN.get(name, query):
            return None
    [(alias, table)] = query.alias_map.items()
    filters = _filters_of(query.where, alias)
    if type(table) is not BaseTable or filters is None or not all(type(name) is str for name in query.order_by):
        return None
    ordering = query.order_by, query.default_ordering
    return query.model, alias, table.table_name, *filters, *ordering, query.low_mark, query.high_mark


def _filters_of(where: Any, alias: str) -> list[Hashable] | None:
    if where.connector != AND or where.negated:
        return None
    filters = list[Hashable]()
    for lookup in where.children:
        values = constants(lookup) if isinstance(lookup, Exact) and compares_column(lookup, alias) else None
        if values is None:
            return None
        column = lookup.lhs
        filters.append((type(lookup), column.target, column.output_field, *values))
    return filters
