"""Asks PostgreSQL what became of a transaction whose COMMIT nobody heard answered.

A crash makes the server forget transactions of which nothing had reached its log, and give their ids again. So its
answer about an id counts only as far as it is known that the id is still that of the same transaction.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from django.db import Error
from django.db.utils import load_backend

from ..outcomes import Status
from .error_codes import sqlstate_of
from .transactions import NO_XID, XID_BITS

MAX_WAIT = 30.0
"""Seconds that a server gets to end the transaction, or to come back after a crash."""
POLL_INTERVAL = 0.05
ANSWERS = {"committed": Status.SUCCEEDED, "aborted": Status.FAILED}
UNKNOWN_XID = "22023"
"""The SQLSTATE for an id that is "in the future": the crash left nothing of the transaction."""
WAS_RESET = "SELECT extract(epoch FROM stats_reset) * 1000000 > %s FROM pg_stat_bgwriter"
"""A crash resets the statistics. So can their owner, with pg_stat_reset_shared()."""
RECOVERED = """
    SELECT split_part(next_xid, ':', 1)::bigint * 4294967296 + split_part(next_xid, ':', 2)::bigint > %s
    FROM pg_control_checkpoint(), pg_stat_bgwriter
    WHERE redo_lsn = checkpoint_lsn AND checkpoint_time >= date_trunc('second', stats_reset)
"""
"""Whether recovery came across the id. No row, if the last checkpoint is not the one that a recovery ends with."""


def commit_status(note: int, alias: str, settings: Mapping[str, Any]) -> Status:
    """SUCCEEDED, FAILED, or LOST if the server cannot say. On a connection of its own, which is closed again.

    Source: pg_xact_status() in PostgreSQL's "System Information Functions".
    """
    if note == NO_XID:
        return Status.SUCCEEDED  # whether it was committed or not, there was nothing to save
    connection = load_backend(settings["ENGINE"]).DatabaseWrapper(dict(settings), alias)
    deadline = time.monotonic() + MAX_WAIT
    try:
        while time.monotonic() < deadline:
            answer = _ask(connection, *divmod(note, 1 << XID_BITS))
            if answer != "in progress":
                return ANSWERS.get(answer or "", Status.LOST)
            time.sleep(POLL_INTERVAL)
    finally:
        connection.close()
    return Status.LOST


def _ask(connection: Any, moment: int, number: int) -> str | None:
    try:
        with connection.cursor() as cursor:
            answer: str | None = _one(cursor, "SELECT pg_xact_status(%s::text::xid8)", str(number))
            if answer != "aborted" and _one(cursor, WAS_RESET, moment):
                answer = _after_crash(answer, _one(cursor, RECOVERED, number))
    except Error as error:
        connection.close()  # the server is not up again yet
        return "aborted" if sqlstate_of(error) == UNKNOWN_XID else "in progress"
    return answer


def _one(cursor: Any, query: str, parameter: object) -> Any:
    cursor.execute(query, [parameter])
    row = cursor.fetchone()
    return None if row is None else row[0]


def _after_crash(answer: str | None, recovered: bool | None) -> str | None:
    """What an answer other than "aborted" means then; an aborted transaction left nothing, whosever id it is."""
    # Not handled: a second crash before the first question, by whose recovery other transactions had the same ids.
    if recovered is None:
        return None
    return answer if recovered else "aborted"
