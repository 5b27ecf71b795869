"""Django's compilers of one connection, made to ask the buffer before they send an INSERT or UPDATE."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from functools import cache
from itertools import product
from types import MappingProxyType
from typing import Any

from django.db.models.sql import compiler as django_compilers
from django.db.models.sql.constants import ROW_COUNT

from .buffer import WriteBuffer

NAMES = ("SQLInsertCompiler", "SQLUpdateCompiler", "SQLCompiler")
"""The compilers that buffering goes by."""


class Compilers:
    """Takes the place of `connection.ops.compiler` while a buffer is in use."""

    def __init__(self, connection: Any, buffer: WriteBuffer) -> None:
        self._ops, self._buffer = connection.ops, buffer
        self._ordinary = connection.ops.compiler
        self._ops.compiler = self._compiler

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
            pre_saved: list[Any] = []
            rows = self.buffer.hold_insert(self.query, list(returning_fields or ()), pre_saved)
            if rows is not None:
                return rows
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
            if result_type == ROW_COUNT and self.buffer.hold_update(self):
                return 1
            return super().execute_sql(result_type)

    return SQLUpdateCompiler


BUFFERING = {"SQLInsertCompiler": _buffering_insert, "SQLUpdateCompiler": _buffering_update}
"""How a compiler of Django's is made one that asks the buffer first."""
