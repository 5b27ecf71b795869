"""What several tests of databases share."""

import pytest
from django.db import connections

LIMIT = 4
"""Connections of the role, of which none is another's: those of the caller are a superuser's."""


@pytest.fixture
def limited(transactional_db, monkeypatch):
    """The workers' role on PostgreSQL may have few connections."""
    caller = connections["postgres"]
    with caller.cursor() as cursor:
        cursor.execute(f"CREATE ROLE limited LOGIN CONNECTION LIMIT {LIMIT}")
        cursor.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO limited")
        cursor.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO limited")
    monkeypatch.setitem(caller.settings_dict, "USER", "limited")
    yield
    monkeypatch.undo()
    caller.close()
    with caller.cursor() as cursor:
        cursor.execute("DROP OWNED BY limited")
        cursor.execute("DROP ROLE limited")
