"""Locks of a session that an object which failed has left behind.

`pg_advisory_lock()` and `GET_LOCK()` last longer than their transaction. A function that fails between lock and unlock,
or whose unlock the aborted transaction refuses, keeps the lock: in a loop nobody notices, since a session may take its
own lock again, but all other workers would wait for one that does not end.
"""

from __future__ import annotations

from django.db import Error, connections

RELEASE = {"postgresql": "SELECT pg_advisory_unlock_all()", "mysql": "SELECT RELEASE_ALL_LOCKS()"}
"""By vendor. A question to the server, and so only asked after a failure."""


def release_session_locks() -> None:
    """Release those of this thread's connections, which must be a worker's own, outside of any transaction."""
    for connection in connections.all(initialized_only=True):
        statement = RELEASE.get(connection.vendor)
        if statement is None or connection.connection is None or connection.in_atomic_block:
            continue
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
        except Error:  # the function has left it in a transaction, or the session is gone: its locks go with it
            connection.close()
