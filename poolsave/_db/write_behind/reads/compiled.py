"""Recognizes a query that was compiled for an earlier object, so that its answer is found without compiling it again.

Django makes a statement of a query in more time than it takes to look the answer up. Two queries of a model give the
same statement if they have the same attributes. Here that is said only of simple ones, such as those of `get()` and
`first()`: the columns of one table equal values that are sent as they are, and nothing else was asked for. A field or
an order of a project's own may depend on more, such as a language or a tenant.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from django.db.models.lookups import Exact
from django.db.models.sql import Query
from django.db.models.sql.datastructures import BaseTable
from django.db.models.sql.where import AND, WhereNode

from ..fields import MAX_KNOWN_TYPES
from .matching import compares_column, constants
from .repeated import Question

_PLAIN = {**vars(Query), **vars(Query(None))}
"""The attributes of a query that asks for nothing but all rows."""
_IN_KEY = {"model", "alias_map", "where", "order_by", "default_ordering", "low_mark", "high_mark"}
_WITHOUT_EFFECT = {"alias_refcount", "table_map", "used_aliases", "filter_is_sticky", "base_table", "_lookup_joins"}
"""Attributes that say only how to go on building a query, where it reads one table."""
_MAY_DIFFER = _IN_KEY | _WITHOUT_EFFECT
_COMPILED_BY = ("get_col", "select_format")
"""Methods of a field that say how its column is read."""


class Compiled(NamedTuple):
    """What Django has made of a query."""

    question: Question
    state: Mapping[str, Any]
    """The attributes that its compiler has afterwards."""


def key_of(query: Any, result_type: str) -> Hashable | None:
    """Give a key: queries that have the same one compile to the same statement. None: that is not certain."""
    if type(query) is not Query or type(query.where) is not WhereNode or len(query.alias_map) != 1:
        return None
    for name, value in vars(query).items():
        if name not in _MAY_DIFFER and value != _PLAIN.get(name, query):
            return None
    [(alias, table)] = query.alias_map.items()
    filters, order = _filters_of(query.where, alias), _order_of(query)
    if type(table) is not BaseTable or filters is None or order is None:
        return None
    return result_type, query.model, alias, table.table_name, *filters, order, query.low_mark, query.high_mark


def _order_of(query: Any) -> Hashable | None:
    columns = _names_of_columns(query.model)
    order = query.order_by or (tuple(query.get_meta().ordering) if query.default_ordering else ())
    return order if columns and all(type(name) is str and name.removeprefix("-") in columns for name in order) else None


@lru_cache(MAX_KNOWN_TYPES)
def _names_of_columns(model: Any) -> frozenset[str]:
    """Give the names by which an order names a column itself, or none if one is read in a way of the project's own."""
    fields = model._meta.concrete_fields
    methods = [getattr(type(field), name) for field in fields for name in _COMPILED_BY]
    is_djangos = all(method.__module__.startswith("django.") for method in methods)
    return frozenset(["pk", *(field.attname for field in fields)] if is_djangos else [])


def _filters_of(where: Any, alias: str) -> list[Hashable] | None:
    if where.connector != AND or where.negated:
        return None
    filters = list[Hashable]()
    for lookup in where.children:
        values = constants(lookup) if isinstance(lookup, Exact) and compares_column(lookup, alias) else None
        if values is None:
            return None
        column = lookup.lhs
        filters.append((type(lookup), column.target.column, type(column.output_field), *values))
    return filters
