"""What drivers raise when the server is gone is known as a lost connection."""

import pytest
from django.db import DatabaseError
from django.db.utils import load_backend

from poolsave._db.error_codes import connection_lost, is_transient
from tests.support.postgres import settings_from_url


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
