"""Releases session locks that a failed object has left behind.

`pg_advisory_lock()` and `GET_LOCK()` outlast their transaction. A function keeps the lock if it fails between lock and
unlock, or if the aborted transaction refuses the unlock. A plain loop is not affected, since a session may take its own
lock again. In a pool all other workers would wait for ever.
"""

from __future__ import annotations

from django.db import Error, connections

RELEASE = {"postgresql": "SELECT pg_advisory_unlock_all()", "mysql": "SELECT RELEASE_ALL_LOCKS()"}
"""By vendor. It takes a round trip, so it is sent only after a failure."""


def release_session_locks() -> None:
    """Release the locks of this thread's connections, which must be a worker's own and outside of any transaction."""
    for connection in connections.all(initialized_only=True):
        statement = RELEASE.get(connection.vendor)
        if statement is None or connection.connection is None or connection.in_atomic_block:
            continue
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
        except Error:  # left in a transaction, or gone: closing it ends the session and its locks
            connection.close()
