"""All rows of all tables, read by plain SQL."""

from functools import cache

from django.db import connections


def contents(alias):
    """`{table: {key: {column: value}}}` of every table."""
    connection = connections[alias]
    with connection.cursor() as cursor:
        tables = connection.introspection.table_names(cursor)
        return {table: rows(cursor, alias, table) for table in tables}


def rows(cursor, alias, table):
    cursor.execute(f"SELECT * FROM {connections[alias].ops.quote_name(table)}")
    columns = [column[0] for column in cursor.description]
    found = [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]
    keys = key_columns(alias, table) or columns
    return {tuple(row[key] for key in keys): row for row in found}


@cache  # since PostgreSQL needs several milliseconds to tell
def key_columns(alias, table):
    with connections[alias].cursor() as cursor:
        return tuple(connections[alias].introspection.get_primary_key_columns(cursor, table) or ())


def difference(before, after):
    """`{(table, key): {column: (value before, value after)}}` of all rows that differ."""
    differing = {}
    for table in before.keys() | after.keys():
        old, new = before.get(table, {}), after.get(table, {})
        for key in old.keys() | new.keys():
            if old.get(key) != new.get(key):
                columns = old.get(key) or new.get(key)
                pairs = {name: (old.get(key, {}).get(name), new.get(key, {}).get(name)) for name in columns}
                both = key in old and key in new
                differing[table, key] = {name: pair for name, pair in pairs.items() if not both or pair[0] != pair[1]}
    return differing
