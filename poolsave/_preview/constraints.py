"""What only a COMMIT would show: constraints that are deferred. And tables that no rollback undoes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from django.db import IntegrityError

SAVEPOINT = "poolsave_dry_run"

_Violation: TypeAlias = tuple[Any, ...]
"""Table, row id, table of the parent, number of the foreign key: as SQLite gives them."""


@contextmanager
def rolled_back_savepoint(connection: Any) -> Iterator[None]:
    """Undo at the end what is done in this block."""
    connection._savepoint(SAVEPOINT)
    try:
        yield
    finally:
        connection._savepoint_rollback(SAVEPOINT)
        connection._savepoint_commit(SAVEPOINT)


class DeferredConstraints:
    """For databases that check every constraint at once, such as MariaDB."""

    def before_write(self, table: str) -> None:
        """Note what is broken before a sample writes to the table."""

    def check(self) -> None:
        """Do what the COMMIT of a sample would do.

        Raises:
            DatabaseError: if the COMMIT would fail.
        """


class PostgresConstraints(DeferredConstraints):
    """Checks them, and has the savepoint put back which of them are deferred, and that they are unchecked."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._holds = True
        try:
            self.check()
        except IntegrityError:  # what the caller has written before, which a later statement may mend
            self._holds = False

    def check(self) -> None:
        if self._holds:
            with rolled_back_savepoint(self._connection), self._connection.cursor() as cursor:
                cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")


class SqliteConstraints(DeferredConstraints):
    """Looks for foreign keys without a parent in the tables that are written, and in those that refer to them."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._tables: dict[str, set[str]] = defaultdict(set)
        """By table: itself and those that refer to it, in lower case as SQLite compares them."""
        self._broken_before: dict[str, set[_Violation]] = {}
        self._written: set[str] = set()
        (enforced,) = self._ask("PRAGMA foreign_keys")[0]
        for (table,) in self._ask("SELECT name FROM sqlite_master WHERE type = 'table'") if enforced else ():
            self._tables[table.lower()].add(table)
            for reference in self._ask(f"PRAGMA foreign_key_list({self._quoted(table)})"):
                self._tables[reference[2].lower()].add(table)

    def _ask(self, question: str) -> list[Any]:
        with self._connection.cursor() as cursor:
            cursor.execute(question)
            return list(cursor.fetchall())

    def _quoted(self, table: str) -> str:
        return str(self._connection.ops.quote_name(table))

    def before_write(self, table: str) -> None:
        tables = self._tables.get(table.lower(), ())
        self._written.update(tables)
        for each in tables:
            if each not in self._broken_before:
                self._broken_before[each] = self._broken(each)

    def check(self) -> None:
        written, self._written = self._written, set()
        for table in written:
            for violation in self._broken(table) - self._broken_before[table]:
                raise IntegrityError(
                    f"FOREIGN KEY constraint failed: a row of {table} refers to a missing row of {violation[2]}"
                )

    def _broken(self, table: str) -> set[_Violation]:
        return {tuple(row) for row in self._ask(f"PRAGMA foreign_key_check({self._quoted(table)})")}


def deferred_constraints_of(connection: Any) -> DeferredConstraints:
    """Give the checks of a connection whose transaction has just begun."""
    kinds = {"postgresql": PostgresConstraints, "sqlite": SqliteConstraints}
    kind = kinds.get(connection.vendor)
    return DeferredConstraints() if kind is None else kind(connection)


def non_transactional_tables(connection: Any) -> dict[str, str]:
    """Give the tables of MySQL or MariaDB that keep what is written when it is rolled back, each with its engine."""
    if connection.vendor != "mysql":
        return {}
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT t.table_name, t.engine FROM information_schema.tables t JOIN information_schema.engines e "
            "ON e.engine = t.engine WHERE t.table_schema = DATABASE() AND coalesce(e.transactions, 'NO') <> 'YES'"
        )
        return dict(cursor.fetchall())
