"""Django's compilers of one connection, made to ask the buffer before an INSERT or UPDATE is sent."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Mapping
from functools import cache
from itertools import product
from types import MappingProxyType
from typing import Any

from django.db.models.lookups import Exact
from django.db.models.sql import compiler as django_compilers
from django.db.models.sql.constants import MULTI, ROW_COUNT, SINGLE
from django.db.models.sql.where import WhereNode

from . import shortcuts
from .buffer import WriteBuffer
from .inserts import kind_of
from .reads.compiled import Compiled
from .reads.compiled import key_of as key_of_select
from .reads.repeated import MAX_ANSWERS, Answer, Question, question_of
from .updates import key_of, sets_values_by_key

NAMES = ("SQLInsertCompiler", "SQLUpdateCompiler", "SQLCompiler")
"""The compilers that buffering goes by."""


class Compilers:
    """Takes the place of `connection.ops.compiler` while a buffer is in use."""

    def __init__(self, connection: Any, buffer: WriteBuffer) -> None:
        self._ops, self._buffer = connection.ops, buffer
        self._ordinary = connection.ops.compiler
        self._ops.compiler = self._compiler
        self._compiled: dict[Hashable, Compiled] = {}
        self._compiles_alike = _compiles_alike(self._ordinary("SQLCompiler"))
        shortcuts.open_for(self._ops, buffer)

    def _compiler(self, name: str) -> Any:
        ordinary = self._ordinary(name)
        if name not in BUFFERING:
            return ordinary
        kind = BUFFERING[name](ordinary)

        def compiler(*args: Any, **kwargs: Any) -> Any:
            made = kind(*args, **kwargs)
            made.buffer = self._buffer
            made.compiled, made.compiles_alike = self._compiled, self._compiles_alike
            return made

        return compiler

    def close(self) -> None:
        """Put Django's back."""
        self._compiled.clear()  # its compilers refer to it
        del self._ops.compiler
        shortcuts.close_for(self._ops)


def are_djangos_own(connection: Any) -> bool:
    """Whether no third party has replaced or patched what executes queries: a cache would answer without the server."""
    ops = connection.ops
    return "compiler" not in vars(ops) and all(
        ops.compiler(name).execute_sql.__code__ in DJANGOS_CODE for name in NAMES
    )


def _compiles_alike(kind: Any) -> bool:
    """Whether a class of compilers makes the same of equal queries: one for tenants may add a condition by itself."""
    return all(each.__module__.startswith("django.db.") for each in kind.__mro__ if each is not object) and all(
        shortcuts.is_djangos_own(owner, name)
        for owner in (django_compilers.SQLCompiler, WhereNode, Exact)
        for name, method in vars(owner).items()
        if callable(method)
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


class _Answered(BaseException):  # leaves Django's method; not an error
    def __init__(self, answer: Answer) -> None:
        self.answer = answer


_DjangosSelect: Any = django_compilers.SQLCompiler


class _AsksBuffer(_DjangosSelect):  # type: ignore[misc]
    """Comes before Django's compiler of a SELECT, and asks the buffer for an answer."""

    buffer: WriteBuffer
    compiled: dict[Hashable, Compiled]
    """Queries of earlier objects."""
    compiles_alike: bool
    """Whether equal queries are compiled alike."""
    _sends: str | None = None
    """Which rows are asked for of the server, or None for one that gives a part of another's SELECT."""
    _question: Question | None = None

    def execute_sql(self, result_type: str = MULTI, chunked_fetch: bool = False, *args: Any, **kwargs: Any) -> Any:
        self._sends = None if chunked_fetch or result_type not in (MULTI, SINGLE) else result_type
        key = key_of_select(self.query, self._sends) if self._sends and self.compiles_alike else None
        answer = None if key is None else self._find_answer(key)
        if answer is not None:
            return answer.result
        try:
            result = super().execute_sql(result_type, chunked_fetch, *args, **kwargs)
        except _Answered as answered:
            return answered.answer.result
        if self._question is not None and not self.has_extra_select:
            self.buffer.keep_answer(self._question, result)
            if key is not None and len(self.compiled) < MAX_ANSWERS:
                self.compiled[key] = Compiled(self._question, self.__dict__)
        return result

    def _find_answer(self, key: Hashable) -> Answer | None:
        """Give the answer to an equal query, and be as if this one had been compiled."""
        known = self.compiled.get(key)
        if known is None:
            return None
        answer: Answer | None = self.buffer.find_answer(known.question)
        if answer is not None:
            self.__dict__.update(known.state, query=self.query)
        return answer

    def as_sql(self, *args: Any, **kwargs: Any) -> Any:
        sql, params = super().as_sql(*args, **kwargs)
        if self._sends is not None:
            self._question = question_of(sql, params, self._sends)
            answer = None if self._question is None else self.buffer.find_answer(self._question)
            if answer is not None:
                raise _Answered(answer)
            passes = self.buffer.cannot_match(self.query)
            if passes is not None:
                self.buffer.let_pass(sql, passes)
        return sql, params


@cache
def _buffering_select(ordinary: Any) -> Any:
    return type("SQLCompiler", (_AsksBuffer, ordinary), {})


BUFFERING = {
    "SQLInsertCompiler": _buffering_insert,
    "SQLUpdateCompiler": _buffering_update,
    "SQLCompiler": _buffering_select,
}
"""How a compiler of Django's is made one that asks the buffer first."""
