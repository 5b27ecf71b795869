"""Empties the tables in which a test has left rows: Django empties all, which takes longer than most tests."""

from functools import cache

from django.core.management.sql import emit_post_migrate_signal
from django.db import connections, transaction

from tests.support import postgres

UNCHECKED = {
    "postgresql": ("SET LOCAL session_replication_role = replica", "RESET session_replication_role"),
    "mysql": ("SET foreign_key_checks = 0", "SET foreign_key_checks = 1"),
    "sqlite": ("PRAGMA defer_foreign_keys = ON", "PRAGMA defer_foreign_keys = OFF"),
}
"""By vendor: how rows are deleted before those that refer to them, and what ends that."""


def empty_filled_tables(case):
    """Stands in for `TransactionTestCase._fixture_teardown`."""
    for alias in case._databases_names(include_mirrors=False):
        if tables := _filled_tables(alias):
            _delete_from(connections[alias], tables)
            emit_post_migrate_signal(verbosity=0, interactive=False, db=alias)  # as after Django's own flush


def _filled_tables(alias):
    tables, question = _look_at_all(alias)
    if alias == "postgres":
        found = postgres.watcher.ask(question)
    else:
        with connections[alias].cursor() as cursor:
            cursor.execute(question)
            found = cursor.fetchall()
    return [tables[number] for (number,) in found]


@cache
def _look_at_all(alias):
    """The tables of the models, and what asks which of them have rows.

    They are the same after each test, also after those that migrate, and to find them takes longer than to ask.
    """
    connection = connections[alias]
    tables = connection.introspection.django_table_names(only_existing=True, include_views=False)
    return tables, " UNION ALL ".join(
        f"SELECT {number} WHERE EXISTS (SELECT 1 FROM {connection.ops.quote_name(table)})"
        for number, table in enumerate(tables)
    )


def _delete_from(connection, tables):
    before, after = UNCHECKED[connection.vendor]
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        cursor.execute(before)
        for table in tables:
            cursor.execute(f"DELETE FROM {connection.ops.quote_name(table)}")
        cursor.execute(after)
