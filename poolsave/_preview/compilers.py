"""The ORM's writing compilers of one connection, which tell a recorder which rows they write.

Everything that the ORM writes comes through them: `save()`, `delete()` with its cascades, `QuerySet.update()`,
`bulk_create()`, `bulk_update()`, many-to-many rows and receivers. They send the same statements, except that an INSERT
also asks for the keys of its rows, by which rows are found that `ignore_conflicts` would not name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from django.db.models.constants import OnConflict

from .rows import Key, key_fields


class RowRecorder(Protocol):
    """What the compilers tell."""

    def before_matching(self, query: Any, *, deletes: bool = False) -> None: ...
    def before_write(self, model: Any, keys: Iterable[Key]) -> None: ...
    def inserted(self, model: Any, keys: Iterable[Key]) -> None: ...
    def written_unseen(self, table: str, rows: int) -> None: ...
    def before_insert(self, model: Any) -> None: ...
    def orm_statement(self) -> Any: ...
    def undone_statement(self) -> Any: ...


def recording_compilers(original: Callable[[str], Any], recorder: RowRecorder) -> Callable[[str], Any]:
    """Give what takes the place of `connection.ops.compiler`."""
    mixins = {
        "SQLInsertCompiler": RecordingInsert,
        "SQLUpdateCompiler": RecordingUpdate,
        "SQLDeleteCompiler": RecordingDelete,
    }

    def compiler(name: str) -> Any:
        base = original(name)
        if hasattr(base, "recorder"):  # of a dry run that a sample of this one is part of, and that undoes all of this
            base = base.__bases__[1]
        return type(name, (mixins[name], base), {"recorder": recorder}) if name in mixins else base

    return compiler


class RecordingUpdate:
    """Reads the rows that the WHERE clause matches."""

    recorder: RowRecorder
    query: Any

    def execute_sql(self, *args: Any, **kwargs: Any) -> Any:
        self._record()
        with self.recorder.orm_statement():
            return super().execute_sql(*args, **kwargs)  # type: ignore[misc]

    def execute_returning_sql(self, *args: Any, **kwargs: Any) -> Any:
        self._record()
        with self.recorder.orm_statement():
            return super().execute_returning_sql(*args, **kwargs)  # type: ignore[misc]

    def _record(self) -> None:
        # Without values only tables of parents are written, by further queries.
        if self.query.values:
            self.recorder.before_matching(self.query)


class RecordingDelete:
    """Reads the rows that the WHERE clause matches."""

    recorder: RowRecorder
    query: Any

    def execute_sql(self, *args: Any, **kwargs: Any) -> Any:
        self.recorder.before_matching(self.query, deletes=True)
        with self.recorder.orm_statement():
            return super().execute_sql(*args, **kwargs)  # type: ignore[misc]


class RecordingInsert:
    """Asks for the keys of the inserted rows."""

    recorder: RowRecorder
    query: Any
    connection: Any
    returning_fields: Any
    as_sql: Callable[[], Any]
    get_converters: Callable[[Any], Any]
    apply_converters: Callable[[Any, Any], Any]

    def execute_sql(self, returning_fields: Any = None) -> Any:
        model = self.query.model._meta.concrete_model
        self.recorder.before_insert(model)
        with self.recorder.orm_statement():
            if not self.connection.features.can_return_rows_from_bulk_insert:
                return self._insert_unseen(model, returning_fields)
            return self._insert(model, list(returning_fields or ()))

    def _insert(self, model: Any, asked: list[Any]) -> list[Any]:
        keys = key_fields(model)
        wanted = [*asked, *(field for field in keys if field not in asked)]
        positions = [wanted.index(field) for field in keys]
        self.returning_fields = wanted
        statements = self.as_sql()  # once: it calls pre_save() of each field, which may save a file
        if self.query.on_conflict == OnConflict.UPDATE:
            with self.recorder.undone_statement():  # tells which rows it would update, which are read afterwards
                found = self._send(statements, wanted)
            self.recorder.before_write(model, [tuple(row[position] for position in positions) for row in found])
        rows = self._send(statements, wanted)
        self.recorder.inserted(model, [tuple(row[position] for position in positions) for row in rows])
        return [row[: len(asked)] for row in rows] if asked else []

    def _send(self, statements: Any, fields: list[Any]) -> list[Any]:
        with self.connection.cursor() as cursor:
            for sql, params in statements:
                cursor.execute(sql, params)
            rows = [tuple(row) for row in cursor.fetchall()]
        table = self.query.get_meta().db_table
        converters = self.get_converters([field.get_col(table) for field in fields])
        return list(self.apply_converters(rows, converters)) if converters else rows

    def _insert_unseen(self, model: Any, returning_fields: Any) -> Any:
        # A database without RETURNING, such as MySQL: only keys that the objects have are known.
        rows = super().execute_sql(returning_fields)  # type: ignore[misc]
        keys = [tuple(getattr(obj, field.attname) for field in key_fields(model)) for obj in self.query.objs]
        if returning_fields and len(keys) == len(rows) == 1 and len(keys[0]) == 1:
            keys = [tuple(rows[0][:1])]
        self.recorder.inserted(model, [key for key in keys if None not in key])
        self.recorder.written_unseen(model._meta.db_table, sum(None in key for key in keys))
        return rows
