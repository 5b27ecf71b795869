"""What several tests of databases share."""

from pathlib import Path

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


@pytest.fixture
def server_process(transactional_db):
    """The process of the session of this thread's connection."""
    connection = connections["postgres"]
    connection.ensure_connection()
    process = connection.connection.info.backend_pid
    if not Path(f"/proc/{process}/schedstat").exists():
        pytest.skip("the server runs elsewhere, or the system does not say what its processes compute")
    return process
