"""What django-tenants does: the schema is an attribute of the connection, which sets `search_path` by itself."""

from contextlib import contextmanager

from django.db import connections


@contextmanager
def schema_context(schema):
    connection = connections["tenants"]
    before = connection.schema_name
    connection.set_schema(schema)
    try:
        yield
    finally:
        connection.set_schema(before)
