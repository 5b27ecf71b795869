"""Asks PostgreSQL what became of a transaction whose COMMIT nobody heard answered."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from django.db import Error
from django.db.utils import load_backend

from ._transactions import NOTHING_WRITTEN
from .outcomes import Status

__all__ = ["what_became_of"]

PATIENCE = 30.0
"""Seconds that a server gets to end the transaction, or to come back after a crash."""
PAUSE = 0.05
ANSWERS = {"committed": Status.SUCCEEDED, "aborted": Status.FAILED}


def what_became_of(note: int, alias: str, settings: Mapping[str, Any]) -> Status:
    """SUCCEEDED, FAILED, or LOST if the server cannot say. On a connection of its own, which is closed again.

    Source: pg_xact_status() in PostgreSQL's "System Information Functions".
    """
    if note == NOTHING_WRITTEN:
        return Status.SUCCEEDED  # whether it was committed or not, there was nothing to save
    connection = load_backend(settings["ENGINE"]).DatabaseWrapper(dict(settings), alias)
    deadline = time.monotonic() + PATIENCE
    try:
        while time.monotonic() < deadline:
            answer = _ask(connection, note)
            if answer != "in progress":
                return ANSWERS.get(answer or "", Status.LOST)
            time.sleep(PAUSE)
    finally:
        connection.close()
    return Status.LOST


def _ask(connection: Any, note: int) -> str | None:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_xact_status(%s::text::xid8)", [str(note)])
            found: str | None = cursor.fetchone()[0]
    except Error:  # the server is not up again yet
        connection.close()
        return "in progress"
    return found
