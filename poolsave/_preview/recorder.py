"""Watches one connection while samples run: which rows are written, what passes by the ORM, and what would commit.

The hooks are attributes of this thread's connection, so that no other thread notices.

    function -> ORM -> connection.ops.compiler ---> before_write(), inserted()
             -> cursor -> execute_wrappers --------> other_writes
             -> end of a sample -> savepoint_commit -> deferred constraints
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

from django.db.models import QuerySet

from .._db.transaction_guard import statement_text
from ..previews import Change
from .compilers import recording_compilers
from .constraints import deferred_constraints_of, non_transactional_tables, rolled_back_savepoint
from .refusals import Refusals
from .replacing import replaced
from .rows import Key, Row, change_of, matching_keys, read_rows
from .statements import written_tables


class Recorder:
    """Records what is written on a connection whose transaction is open."""

    def __init__(self, connection: Any, refusals: Refusals) -> None:
        self.connection = connection
        self.other_writes: Counter[str] = Counter()
        self.seconds = 0.0
        """What reading rows and checking constraints took."""
        self._inserts = False
        self._refusals = refusals
        self._before: dict[tuple[Any, Key], Row | None] = {}
        self._at_savepoints: dict[Any, tuple[int, Counter[str]]] = {}
        """What was recorded when a savepoint was set: how many rows, and the other writes."""
        self._returning: tuple[str, int] | None = None
        """SQLite: a table to which a statement with RETURNING has written, and the changes of the connection before."""
        self._in_orm = 0
        self._depth = len(connection.savepoint_ids)
        self._callbacks = len(connection.run_on_commit)
        self._constraints = deferred_constraints_of(connection)
        self._unsafe = non_transactional_tables(connection)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Record what happens in this block."""
        connection = self.connection
        with ExitStack() as stack:
            hooks = {
                "savepoint": self._around_savepoint(connection.savepoint),
                "savepoint_rollback": self._around_rollback(connection.savepoint_rollback),
                "savepoint_commit": self._around_release(connection.savepoint_commit),
                "validate_no_atomic_block": self._refusing_end(connection.validate_no_atomic_block),
            }
            for name, hook in hooks.items():
                stack.enter_context(replaced(connection, name, hook))
            compilers = recording_compilers(connection.ops.compiler, self)
            stack.enter_context(replaced(connection.ops, "compiler", compilers))
            stack.enter_context(connection.execute_wrapper(self._around_statement))
            yield

    @property
    def moves_sequences(self) -> bool:
        """Whether keys may be used up, which no rollback gives back."""
        return self.connection.vendor != "sqlite" and (self._inserts or bool(self.other_writes))

    @property
    def callbacks(self) -> int:
        """How many `on_commit` callbacks are registered since the begin; those of failed samples are gone."""
        return len(self.connection.run_on_commit) - self._callbacks

    def changes(self) -> list[Change]:
        """Read all recorded rows again, and give what has changed."""
        keys: dict[Any, list[Key]] = defaultdict(list)
        for model, key in self._before:
            keys[model].append(key)
        alias = self.connection.alias
        after = {model: read_rows(model, of_model, alias) for model, of_model in keys.items()}
        changes = (
            change_of(model, key, row, after[model].get(key), alias) for (model, key), row in self._before.items()
        )
        return [change for change in changes if change is not None]

    # What the compilers tell.

    def before_matching(self, query: Any, *, deletes: bool = False) -> None:
        """Read the rows that an UPDATE or DELETE matches."""
        model = query.model._meta.concrete_model
        self.check_table(model._meta.db_table)
        with self._timed():
            keys = matching_keys(query, self.connection.alias)
        self.before_write(model, keys, deletes=deletes)

    def before_write(self, model: Any, keys: Iterable[Key], *, deletes: bool = False) -> None:
        """Read the rows that are written for the first time."""
        keys = list(keys)
        new = [key for key in keys if (model, key) not in self._before]
        with self._timed():
            rows = read_rows(model, new, self.connection.alias) if new else {}
        self._before.update(((model, key), rows.get(key)) for key in new)
        if deletes and keys:
            self._before_cascades(model, keys)

    def _before_cascades(self, model: Any, keys: list[Key]) -> None:
        # `on_delete=DB_CASCADE` and its like, of Django 6.1: the database itself writes these rows.
        for relation in model._meta.get_fields(include_hidden=True):
            operation = getattr(getattr(relation, "on_delete", None), "operation", None)
            if operation is not None and relation.auto_created:
                child, field = relation.related_model._meta.concrete_model, relation.field
                self.check_table(child._meta.db_table)
                rows = self._referring_keys(child, field, model, keys)
                self.before_write(child, rows, deletes=operation == "CASCADE")

    def _referring_keys(self, child: Any, field: Any, model: Any, keys: list[Key]) -> list[Key]:
        alias = self.connection.alias
        target = field.target_field.attname
        rows = read_rows(model, keys, alias).values()
        names = [local.attname for local in model._meta.local_concrete_fields]
        values = [row.values[names.index(target)] for row in rows]
        pk = [part.attname for part in child._meta.pk_fields]
        return list(QuerySet(child, using=alias).filter(**{f"{field.attname}__in": values}).values_list(*pk))

    def before_insert(self, model: Any) -> None:
        """Note that rows are about to be inserted."""
        self._inserts = True
        self.check_table(model._meta.db_table)

    def inserted(self, model: Any, keys: Iterable[Key]) -> None:
        """Record rows that were not there."""
        for key in keys:
            self._before.setdefault((model, key), None)

    def written_unseen(self, table: str, rows: int) -> None:
        """Count rows whose keys are not known."""
        if rows:
            self.other_writes[table] += rows

    def check_table(self, table: str) -> None:
        """Refuse a write that no rollback undoes; and note, before the first write, which constraints are broken."""
        self._refusals.raise_first()  # the transaction may be gone
        name = table.rpartition(".")[2]
        if name in self._unsafe:
            self._refusals.refuse(
                f"the table {name!r} on {self.connection.alias!r} has no transactions ({self._unsafe[name]}), so "
                "that a dry run could not undo what is written there: ALTER TABLE ... ENGINE=InnoDB"
            )
        with self._timed():
            self._constraints.before_write(name)

    @contextmanager
    def orm_statement(self) -> Iterator[None]:
        """Statements in this block are the ORM's, whose rows are recorded."""
        self._in_orm += 1
        try:
            yield
        finally:
            self._in_orm -= 1

    @contextmanager
    def undone_statement(self) -> Iterator[None]:
        """What is written in this block is rolled back at its end."""
        with self._timed(), rolled_back_savepoint(self.connection):
            yield

    # Hooks.

    def _around_statement(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
        self._count_returning()
        if self._in_orm:
            return execute(sql, params, many, context)
        text = sql.as_string(self.connection.connection) if hasattr(sql, "as_string") else statement_text(sql)
        tables = written_tables(text, escapes=self.connection.vendor == "mysql")
        if not tables:
            return execute(sql, params, many, context)
        for table in tables:
            self.check_table(table)
        # One by one, since psycopg2 tells only the rows of the last.
        result = None
        for values in params if many else [params]:
            result = execute(sql, [values] if many else values, many, context)
            self.other_writes.update(tables[:-1])  # of several statements the driver tells the rows of the last
            self._count_rows(context["cursor"], tables[-1])
        return result

    def _count_rows(self, cursor: Any, table: str) -> None:
        if self.connection.vendor == "sqlite" and cursor.description is not None:
            self._returning = table, self.connection.connection.total_changes
            return
        self.other_writes[table] += cursor.rowcount if cursor.rowcount >= 0 else 1

    def _count_returning(self) -> None:
        # SQLite counts the rows when the first of them are fetched, or their cursor is closed. The end of a sample
        # is a statement, too.
        if self._returning is not None:
            table, before = self._returning
            self._returning = None
            self.written_unseen(table, self.connection.connection.total_changes - before)

    def _is_at_sample(self) -> bool:
        return len(self.connection.savepoint_ids) == self._depth

    def _around_savepoint(self, savepoint: Callable[[], Any]) -> Callable[[], Any]:
        def begin() -> Any:
            if self._is_at_sample():
                self._refusals.raise_first()
            sid = savepoint()
            self._at_savepoints[sid] = len(self._before), self.other_writes.copy()
            return sid

        return begin

    def _around_rollback(self, roll_back: Callable[[Any], None]) -> Callable[[Any], None]:
        def undo(sid: Any) -> None:
            roll_back(sid)
            # Rows that were read since then may have been written before that, past the ORM, which is undone, too.
            if sid in self._at_savepoints:
                rows, self.other_writes = self._at_savepoints[sid]
                self._before = dict(islice(self._before.items(), rows))

        return undo

    def _around_release(self, release: Callable[[Any], None]) -> Callable[[Any], None]:
        def check_and_release(sid: Any) -> None:
            if self._is_at_sample():
                with self._timed():
                    self._constraints.check()
            release(sid)

        return check_and_release

    def _refusing_end(self, validate: Callable[[], None]) -> Callable[[], None]:
        def refuse() -> None:
            if self.connection.in_atomic_block:
                self._refusals.note_end("commit(), rollback() or set_autocommit()", self.connection.alias)
            validate()

        return refuse

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started
