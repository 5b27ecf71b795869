"""Empties the tables in which a test has left rows: Django empties all, which takes longer than most tests."""

from django.core.management.sql import emit_post_migrate_signal
from django.db import connections, transaction

UNCHECKED = {
    "postgresql": ("SET LOCAL session_replication_role = replica", "RESET session_replication_role"),
    "mysql": ("SET foreign_key_checks = 0", "SET foreign_key_checks = 1"),
    "sqlite": ("PRAGMA defer_foreign_keys = ON", "PRAGMA defer_foreign_keys = OFF"),
}
"""By vendor: how rows are deleted before those that refer to them, and what ends that."""


def empty_filled_tables(case):
    """Stands in for `TransactionTestCase._fixture_teardown`."""
    for alias in case._databases_names(include_mirrors=False):
        connection = connections[alias]
        tables = _filled_tables(connection)
        if tables:
            _delete_from(connection, tables)
            emit_post_migrate_signal(verbosity=0, interactive=False, db=alias)  # as after Django's own flush


def _filled_tables(connection):
    tables = connection.introspection.django_table_names(only_existing=True, include_views=False)
    question = " UNION ALL ".join(
        f"SELECT {number} WHERE EXISTS (SELECT 1 FROM {connection.ops.quote_name(table)})"
        for number, table in enumerate(tables)
    )
    with connection.cursor() as cursor:
        cursor.execute(question)
        return [tables[number] for (number,) in cursor.fetchall()]


def _delete_from(connection, tables):
    before, after = UNCHECKED[connection.vendor]
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        cursor.execute(before)
        for table in tables:
            cursor.execute(f"DELETE FROM {connection.ops.quote_name(table)}")
        cursor.execute(after)
