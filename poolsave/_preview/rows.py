"""Rows as the database has them: read by their keys, compared, and shown as changes.

A row is that of one table. The row of a child in multi-table inheritance has only the child's own columns.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

from django.db.models import QuerySet, Value
from django.db.models.sql import Query
from django.db.models.sql.constants import MULTI

from .._runtime.foreign_exceptions import repr_of
from ..previews import Change

BATCH = 500
"""Rows that are read with one query, since SQLite and others limit the number of parameters."""

Key: TypeAlias = tuple[Any, ...]
"""The values of a row's primary key, one or several."""


class Row(NamedTuple):
    """The local columns of one row."""

    raw: tuple[Any, ...]
    """As the driver gives them."""
    values: tuple[Any, ...]
    """As the model's fields give them."""


def key_fields(model: Any) -> list[Any]:
    """Give the fields of the primary key."""
    return list(model._meta.pk_fields)


def read_rows(model: Any, keys: Collection[Key], alias: str) -> dict[Key, Row]:
    """Read the rows that are there."""
    rows: dict[Key, Row] = {}
    ordered, single = list(keys), len(key_fields(model)) == 1
    for start in range(0, len(ordered), BATCH):
        part = [key[0] if single else key for key in ordered[start : start + BATCH]]
        rows.update(_read(model, part, alias))
    return rows


def _read(model: Any, keys: list[Any], alias: str) -> Iterator[tuple[Key, Row]]:
    fields = model._meta.local_concrete_fields
    # No manager: it might leave rows out.
    queryset: QuerySet[Any] = QuerySet(model, using=alias).filter(pk__in=keys)
    positions = [fields.index(field) for field in key_fields(model)]
    for raw, values in _select(queryset.values_list(*(field.attname for field in fields)).query, alias):
        yield tuple(values[position] for position in positions), Row(tuple(raw), tuple(values))


def _select(query: Query, alias: str) -> Iterator[tuple[Any, Any]]:
    compiler: Any = query.get_compiler(alias)
    raw = list(chain.from_iterable(compiler.execute_sql(MULTI)))
    return zip(raw, compiler.results_iter([raw]), strict=True)


def matching_keys(write: Any, alias: str) -> list[Key]:
    """Give the keys of the rows that an UPDATE or DELETE matches, and those that an UPDATE gives them."""
    query: Any = write.chain(klass=Query)
    query.clear_ordering(force=True)
    query.clear_select_clause()
    old = [field.get_col(query.get_initial_alias()) for field in key_fields(write.model)]
    new = _new_key(write, query, old)
    query.select = (*old, *new)
    query.values_select = ()
    size = len(old)
    rows = [tuple(values) for _raw, values in _select(query, alias)]
    return list(dict.fromkeys(chain((row[:size] for row in rows), (row[size:] for row in rows if new))))


def _new_key(write: Any, query: Any, old: list[Any]) -> list[Any]:
    new = {field: value for field, _model, value in getattr(write, "values", ())}
    if not new.keys() & {*key_fields(write.model)}:
        return []
    return [_expression(new[col.target], col.target, query) if col.target in new else col for col in old]


def _expression(value: Any, field: Any, query: Any) -> Any:
    if hasattr(value, "resolve_expression"):
        return value.resolve_expression(query, allow_joins=False)
    if hasattr(value, "prepare_database_save"):
        value = value.prepare_database_save(field)
    return Value(value, output_field=getattr(field, "target_field", field))


def change_of(model: Any, key: Key, before: Row | None, after: Row | None, alias: str) -> Change | None:
    """Give what became of a row, or None if it is as it was."""
    if before is None and after is None:  # created and undone
        return None
    names = [field.attname for field in model._meta.local_concrete_fields]
    nothing = (None,) * len(names)
    old, new = before.values if before else nothing, after.values if after else nothing
    fields = dict(zip(names, zip(old, new, strict=True), strict=True))
    pk = key[0] if len(key) == 1 else key
    if before is None:
        return Change(model, pk, "create", fields, database=alias)
    if after is None:
        return Change(model, pk, "delete", fields, database=alias)
    stored = zip(names, before.raw, after.raw, strict=True)
    changed = {name: fields[name] for name, raw_old, raw_new in stored if _differ(raw_old, raw_new, *fields[name])}
    return Change(model, pk, "update", changed, database=alias) if changed else None


def _differ(raw_old: Any, raw_new: Any, old: Any, new: Any) -> bool:
    # By repr, too: 1 and True are equal, and different in JSON. A value without __eq__ differs from itself, so the
    # database has the first word.
    return raw_old != raw_new and (old != new or repr_of(old) != repr_of(new))
