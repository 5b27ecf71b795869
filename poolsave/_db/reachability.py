"""Whether a connection to a database is to be had: before a run, and after a server has gone in the middle of one.

`_runs/preflight.py` asks before any worker starts. Workers, and the caller that reads keys, wait for a server that may
come back, for as long as `PATIENCE`. Then the run ends with DatabaseUnreachable.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

from django.db import Error, InterfaceError, OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import load_backend

from .._runtime.foreign_exceptions import is_a, text_of, traceback_of
from ..errors import DatabaseUnreachable
from .connections import outside_event_loop
from .error_codes import chain_of, connection_lost

T = TypeVar("T")

PATIENCE = 3.0
"""Seconds without any connection, after which a run ends: a server that is restarted is back by then, as a rule."""
MAX_START = 30.0
"""Seconds that a server gets while it answers that it is starting."""
STARTING = ("is starting up", "is in recovery mode", "is not yet accepting connections")
"""What PostgreSQL says meanwhile, in English: drivers give no SQLSTATE for a connection that was refused."""
MIN_ATTEMPTS = 3
"""Attempts to connect before a run ends, however long each of them takes."""
PAUSE = 0.1
"""The most seconds between two attempts. They vary, so that not all workers connect at the same moment."""
CONNECT_TIMEOUT = 5
"""Seconds for the attempt before a run, if the project sets no `connect_timeout`. All drivers know it by that name."""
CONNECT = getattr(BaseDatabaseWrapper.connect, "__wrapped__", BaseDatabaseWrapper.connect).__code__
_random = random.SystemRandom()  # the user's code may have seeded the shared generator alike in all workers


def check_can_connect(alias: str, settings: Mapping[str, Any]) -> None:
    """Connect once, with a worker's settings, and close the connection.

    Raises:
        DatabaseUnreachable: with the driver's error as its cause.
    """
    settings = {**settings, "OPTIONS": {"connect_timeout": CONNECT_TIMEOUT, **settings["OPTIONS"]}}
    connection = load_backend(settings["ENGINE"]).DatabaseWrapper(settings, alias)
    with outside_event_loop():  # this wrapper is used here only
        try:
            with connection.wrap_database_errors:
                connection.connect()
        except Error as error:
            raise DatabaseUnreachable(alias, text_of(error).strip()) from error
        finally:
            connection.close()


def alias_without_connection(error: BaseException | None, aliases: Collection[str]) -> str | None:
    """Give the alias of the database, of these, to which no connection could be made, or whose connection has broken,
    if that is what the error comes from. A broken connection is closed."""
    if error is None:
        return None
    return _unconnected_alias(error, aliases) or next(
        filter(_is_broken, aliases if connection_lost(error) else ()), None
    )


def _is_broken(alias: str) -> bool:
    connection = connections[alias]
    if connection.connection is None or connection.in_atomic_block:
        return False
    connection.close_if_unusable_or_obsolete()
    return connection.connection is None


def _unconnected_alias(error: BaseException, aliases: Collection[str]) -> str | None:
    for candidate in chain_of(error):
        if is_a(candidate, OperationalError) or is_a(candidate, InterfaceError):
            for alias in _connected_in(candidate):
                if alias in aliases:
                    return alias
    return None


def _connected_in(error: BaseException) -> Iterator[str]:
    frames = traceback_of(error)
    while frames is not None:
        if frames.tb_frame.f_code is CONNECT:
            yield frames.tb_frame.f_locals["self"].alias
        frames = frames.tb_next


def await_connection(alias: str, halted: Callable[[], bool] = lambda: False) -> str | None:
    """Connect this thread to the database again, as soon as that is possible.

    Gives the driver's message if it has not been possible for `PATIENCE` seconds, or until `halted`; None if there is
    a connection."""
    first = began = time.monotonic()
    attempts = 0
    while True:
        try:
            connections[alias].ensure_connection()
        except Error as error:
            attempts, now = attempts + 1, time.monotonic()
            if is_starting(error) and now - first < MAX_START:
                began = now
            if halted() or (attempts >= MIN_ATTEMPTS and now - began > PATIENCE):
                return text_of(error).strip()
        else:
            return None
        time.sleep(_random.uniform(PAUSE / 2, PAUSE))


def is_starting(error: BaseException) -> bool:
    """Whether the server says that it will take connections soon."""
    text = text_of(error)
    return any(phrase in text for phrase in STARTING)


def read_reconnecting(alias: str, read: Callable[[], T]) -> T:
    """Read outside of any transaction, and once more if the connection was lost and there is another one.

    Raises:
        DatabaseUnreachable: if there is none.
    """
    try:
        return read()
    except Error as error:
        connection = connections[alias]
        if connection.in_atomic_block or not connection_lost(error):
            raise
        connection.close()
        reason = await_connection(alias)
        if reason is not None:
            raise DatabaseUnreachable(alias, reason) from error
        return read()
