"""Django's compilers of one connection, and `Model.save()`, made to ask the buffer before an INSERT or UPDATE is sent.

`save()` reaches its compiler by a manager, a queryset and a query, made anew for each row. That takes more time than to
buffer the row. So two methods of `Model` through which it goes ask the buffer first, if all of these are Django's own.
"""

from __future__ import annotations

import sys
from collections import defaultdict, deque
from collections.abc import Mapping
from functools import cache
from itertools import product
from types import MappingProxyType
from typing import Any

from django.db import connections, models
from django.db.models.sql import InsertQuery
from django.db.models.sql import compiler as django_compilers
from django.db.models.sql.constants import MULTI, ROW_COUNT

from .buffer import WriteBuffer
from .inserts import InsertKind, kind_of
from .updates import key_of, sets_values_by_key

NAMES = ("SQLInsertCompiler", "SQLUpdateCompiler", "SQLCompiler")
"""The compilers that buffering goes by."""


class Compilers:
    """Takes the place of `connection.ops.compiler` while a buffer is in use."""

    def __init__(self, connection: Any, buffer: WriteBuffer) -> None:
        self._ops, self._buffer = connection.ops, buffer
        self._ordinary = connection.ops.compiler
        self._ops.compiler = self._compiler
        _buffers[id(self._ops)] = buffer
        if _saves_are_djangos_own():
            _replace(ORDINARY, SHORT)

    def _compiler(self, name: str) -> Any:
        ordinary = self._ordinary(name)
        if name not in BUFFERING:
            return ordinary
        kind = BUFFERING[name](ordinary)

        def compiler(*args: Any, **kwargs: Any) -> Any:
            made = kind(*args, **kwargs)
            made.buffer = self._buffer
            return made

        return compiler

    def close(self) -> None:
        """Put Django's back."""
        del self._ops.compiler
        del _buffers[id(self._ops)]
        if not _buffers:
            _replace(SHORT, ORDINARY)


def are_djangos_own(connection: Any) -> bool:
    """Whether no third party has replaced or patched what executes queries: a cache would answer without the server."""
    ops = connection.ops
    return "compiler" not in vars(ops) and all(
        ops.compiler(name).execute_sql.__code__ in DJANGOS_CODE for name in NAMES
    )


DJANGOS_CODE = [
    compiler.execute_sql.__code__
    for compiler in (getattr(django_compilers, name) for name in NAMES)
    if compiler.execute_sql.__code__.co_filename == django_compilers.__file__
]


@cache
def _buffering_insert(ordinary: Any) -> Any:
    class SQLInsertCompiler(ordinary):  # type: ignore[misc]
        buffer: WriteBuffer
        _pre_saved: Mapping[Any, deque[Any]] = MappingProxyType({})

        def execute_sql(self, returning_fields: Any = None) -> Any:
            query, pre_saved = self.query, list[Any]()
            kind = kind_of(query, list(returning_fields or ()))
            rows = None if query.raw else self.buffer.hold_insert(kind, query.objs, pre_saved)
            return self.send(returning_fields, pre_saved) if rows is None else rows

        def send(self, returning_fields: Any, pre_saved: list[Any]) -> Any:
            self._pre_saved = values = defaultdict[Any, deque[Any]](deque)
            for (instance, field), value in zip(product(self.query.objs, self.query.fields), pre_saved, strict=False):
                values[id(instance), field].append(value)
            return super().execute_sql(returning_fields)

        def pre_save_val(self, field: Any, obj: Any) -> Any:
            # A second call would count a version twice.
            values = self._pre_saved.get((id(obj), field))
            return values.popleft() if values else super().pre_save_val(field, obj)

    return SQLInsertCompiler


@cache
def _buffering_update(ordinary: Any) -> Any:
    class SQLUpdateCompiler(ordinary):  # type: ignore[misc]
        buffer: WriteBuffer

        def execute_sql(self, result_type: Any) -> Any:
            query = self.query
            can_wait = result_type == ROW_COUNT and sets_values_by_key(query)
            if can_wait and self.buffer.hold_update(query.model, key_of(query), query.values):
                return 1
            return super().execute_sql(result_type)

    return SQLUpdateCompiler


@cache
def _buffering_select(ordinary: Any) -> Any:
    class SQLCompiler(ordinary):  # type: ignore[misc]
        buffer: WriteBuffer
        _passes: str | None = None

        def execute_sql(self, result_type: str = MULTI, chunked_fetch: bool = False, *args: Any, **kwargs: Any) -> Any:
            self._passes = None if chunked_fetch else self.buffer.cannot_match(self.query)
            return super().execute_sql(result_type, chunked_fetch, *args, **kwargs)

        def as_sql(self, *args: Any, **kwargs: Any) -> Any:
            sql, params = super().as_sql(*args, **kwargs)
            if self._passes is not None:
                self.buffer.let_pass(sql, self._passes)
            return sql, params

    return SQLCompiler


BUFFERING = {
    "SQLInsertCompiler": _buffering_insert,
    "SQLUpdateCompiler": _buffering_update,
    "SQLCompiler": _buffering_select,
}
"""How a compiler of Django's is made one that asks the buffer first."""


_buffers: dict[int, WriteBuffer] = {}
"""Those in use, by the id of their connection's `ops`."""


def _do_insert(instance: Any, manager: Any, using: str, *arguments: Any) -> Any:
    fields, returning_fields, raw = arguments
    buffer = _buffers.get(id(connections[using].ops))
    if buffer is None or raw or type(manager) is not models.Manager:
        return ORDINARY["_do_insert"](instance, manager, using, *arguments)
    pre_saved: list[Any] = []
    rows = buffer.hold_insert(InsertKind(manager.model, fields, [*returning_fields]), [instance], pre_saved)
    if rows is not None:
        return rows
    query = InsertQuery(manager.model)
    query.insert_values(fields, [instance])
    return query.get_compiler(using).send(returning_fields, pre_saved)


def _do_update(instance: Any, base_qs: Any, using: str, *arguments: Any) -> Any:
    key, values, _update_fields, _forced_update, *returning = arguments  # Django 6 has `returning_fields`
    if values and not any(returning) and _is_of_all_rows(base_qs):
        buffer = _buffers.get(id(connections[using].ops))
        if buffer is not None and buffer.hold_update(base_qs.model, key, values, as_is=True):
            return [()] if returning else True
    return ORDINARY["_do_update"](instance, base_qs, using, *arguments)


def _is_of_all_rows(queryset: Any) -> bool:
    return type(queryset) is models.QuerySet and type(queryset.model._base_manager) is models.Manager


SHORT = {"_do_insert": _do_insert, "_do_update": _do_update}
"""What stands in for methods of `Model` while there is a buffer."""
ORDINARY = {name: getattr(models.Model, name) for name in SHORT}
DJANGOS_WAY = {
    models.Model: ("save_base", "_save_table", *SHORT),
    models.QuerySet: ("_insert", "_update", "filter"),
    models.Manager: ("get_queryset",),
}
"""The methods between `save()` and a compiler."""


def _saves_are_djangos_own() -> bool:
    """Whether no third party has patched what the replacements leave out, and they are not there yet."""
    return all(_is_djangos_own(owner, name) for owner, names in DJANGOS_WAY.items() for name in names)


def _is_djangos_own(owner: Any, name: str) -> bool:
    code = getattr(getattr(owner, name), "__code__", None)
    return code is not None and code.co_filename == sys.modules[owner.__module__].__file__


def _replace(there: dict[str, Any], wanted: dict[str, Any]) -> None:
    # Other threads may come in between: then a chunk goes the longer way.
    if all(getattr(models.Model, name) is method for name, method in there.items()):
        for name, method in wanted.items():
            setattr(models.Model, name, method)
