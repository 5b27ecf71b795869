"""What drivers raise when the server is gone is known as a lost connection."""

import os
from types import SimpleNamespace

import pytest
from django.db import DatabaseError
from django.db.utils import load_backend

from poolsave._db.error_codes import connection_lost, is_transient
from tests.support.postgres import VARIABLE, settings_from_url


@pytest.mark.exhaustive  # a server of its own takes long to start
@pytest.mark.django_db(databases=["default"])
def test_crash_between_two_statements_is_a_lost_connection(private_server):
    """The drivers raise a bare DatabaseError then, without a SQLSTATE."""
    settings = {
        **settings_from_url(private_server.url),
        "ATOMIC_REQUESTS": False,
        "AUTOCOMMIT": True,
        "TIME_ZONE": None,
    }
    connection = load_backend(settings["ENGINE"]).DatabaseWrapper(
        {**settings, "OPTIONS": {}, "CONN_MAX_AGE": 0, "CONN_HEALTH_CHECKS": False}, "default"
    )
    try:
        with connection.cursor() as cursor:
            private_server.crash()
            with pytest.raises(DatabaseError) as caught:
                cursor.execute("SELECT 1")
    finally:
        private_server.start()
        connection.close()
    assert connection_lost(caught.value)
    assert is_transient(caught.value)


@pytest.mark.parametrize(("code", "ended"), [(None, False), ("22012", True)])
def test_break_before_begin_is_no_end_of_a_transaction(postgres_url, code, ended):
    """Where libpq cannot even send BEGIN, psycopg2 raises a bare DatabaseError, and calls the connection open and idle.

    An error of the server's own, after which the connection is idle, means that a transaction was open and is not.
    """
    psycopg2 = pytest.importorskip("psycopg2")
    from poolsave._db.psycopg2 import Psycopg2Guard

    raw = psycopg2.connect(os.environ[VARIABLE])

    def fails(_query):
        error = psycopg2.DatabaseError("server closed the connection unexpectedly")
        error.__setstate__({"pgcode": code})
        raise error

    try:
        guard = Psycopg2Guard(SimpleNamespace(connection=raw))
        with pytest.raises(psycopg2.Error):
            guard.execute(fails, "SELECT 1")
        assert guard.has_ended() is ended
    finally:
        raw.close()
