"""Whether a connection to a database is to be had: before a run, and after a server has gone in the middle of one.

`_runs/preflight.py` asks before any worker starts. Workers, and the caller that reads keys, wait for a server that may
come back, for as long as `PATIENCE`. Then the run ends with DatabaseUnreachable.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

from django.db import Error, InterfaceError, OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import load_backend

from .._runtime.foreign_exceptions import is_a, text_of, traceback_of
from ..errors import DatabaseUnreachable
from .connections import outside_event_loop
from .error_codes import chain_of, connection_lost, is_starting_or_full

T = TypeVar("T")

PATIENCE = 3.0
"""Seconds without any connection, after which a run ends: a server that is restarted is back by then, as a rule."""
MAX_START = 30.0
"""Seconds that a server gets while it answers that it is starting, or that it has too many connections."""
MIN_ATTEMPTS = 3
"""Attempts to connect before a run ends, however long each of them takes."""
PAUSE = 0.1
"""The most seconds between two attempts. They vary, so that not all workers connect at the same moment."""
CONNECT_TIMEOUT = 5
"""Seconds for an attempt before a run, if the project sets no `connect_timeout`."""
KNOW_CONNECT_TIMEOUT = frozenset({"postgresql", "mysql"})
"""Vendors whose drivers know it by that name. `connect()` of others may refuse it."""
CONNECT = getattr(BaseDatabaseWrapper.connect, "__wrapped__", BaseDatabaseWrapper.connect).__code__
_random = random.SystemRandom()  # the user's code may have seeded the shared generator alike in all workers


def check_can_connect(alias: str, settings: Mapping[str, Any]) -> None:
    """Connect once, with a worker's settings, and close the connection. A server that is starting is waited for.

    Raises:
        DatabaseUnreachable: with the driver's error as its cause.
    """
    connection = load_backend(settings["ENGINE"]).DatabaseWrapper(dict(settings), alias)
    has_its_own = connection.vendor == "postgresql" and "PGCONNECT_TIMEOUT" in os.environ
    if connection.vendor in KNOW_CONNECT_TIMEOUT and not has_its_own:
        connection.settings_dict["OPTIONS"] = {"connect_timeout": CONNECT_TIMEOUT, **settings["OPTIONS"]}
    with outside_event_loop():  # this wrapper is used here only
        try:
            error = _connect_patiently(partial(_connect, connection), patience=0, attempts=1)
        finally:
            connection.close()
    if error is not None:
        raise DatabaseUnreachable(alias, text_of(error).strip()) from error


def check_has_slots(aliases: Iterable[str]) -> None:
    """Connect this thread to these databases, for a worker that the run can do without.

    Raises:
        Error: of a server that has no connection left. All else is for objects to say.
    """
    for alias in aliases:
        try:
            connections[alias].ensure_connection()
        except Exception as error:  # also of a receiver of connection_created
            if is_starting_or_full(error):
                raise


def _connect(connection: BaseDatabaseWrapper) -> None:
    with connection.wrap_database_errors:
        connection.connect()


def alias_without_connection(error: BaseException | None, aliases: Collection[str]) -> str | None:
    """Give the alias of the database, of these, to which no connection could be made, or whose connection has broken,
    if that is what the error comes from. A broken connection is closed."""
    if error is None:
        return None
    try:
        return _unconnected_alias(error, aliases) or next(
            filter(_is_broken, aliases if connection_lost(error) else ()), None
        )
    except Exception:  # of a backend's own code: what has happened to the object counts, and not why
        return None


def _is_broken(alias: str) -> bool:
    connection = connections[alias]
    if connection.connection is None or connection.in_atomic_block:
        return False
    connection.close_if_unusable_or_obsolete()
    return connection.connection is None


def _unconnected_alias(error: BaseException, aliases: Collection[str]) -> str | None:
    return next((alias for candidate in chain_of(error) for alias in _missed_in(candidate) if alias in aliases), None)


def _missed_in(error: BaseException) -> Iterator[str]:
    if is_a(error, DatabaseUnreachable):  # of a run inside of the object
        yield error.alias
    elif is_a(error, OperationalError) or is_a(error, InterfaceError):
        frames = traceback_of(error)
        while frames is not None:
            connection = frames.tb_frame.f_locals.get("self") if frames.tb_frame.f_code is CONNECT else None
            if connection is not None:  # else the frame was cleared, as assertRaises does
                yield connection.alias
            frames = frames.tb_next


def await_connection(alias: str, halted: Callable[[], bool] = lambda: False) -> str | None:
    """Connect this thread to the database again, as soon as that is possible.

    Gives the driver's message if it has not been possible for `PATIENCE` seconds, or until `halted`; None if there is
    a connection, or if what prevents it is not the server."""
    try:
        connect = connections[alias].ensure_connection
        error = _connect_patiently(connect, patience=PATIENCE, attempts=MIN_ATTEMPTS, halted=halted)
    except Exception:  # from a receiver of connection_created, for example: the next object says it
        return None
    return None if error is None else text_of(error).strip()


def _connect_patiently(
    connect: Callable[[], None], *, patience: float, attempts: int, halted: Callable[[], bool] = lambda: False
) -> Error | None:
    """Connect, with so many attempts and for so many seconds at least. Gives the last error if that was in vain.

    While the server answers that it will take connections soon, and some seconds after that, it is tried again."""
    first = began = time.monotonic()
    while True:
        try:
            connect()
        except Error as error:
            attempts, now = attempts - 1, time.monotonic()
            if is_starting_or_full(error) and now - first < MAX_START:
                began, patience = now, PATIENCE
            if halted() or (attempts < 1 and now - began >= patience):
                return error
        else:
            return None
        time.sleep(_random.uniform(PAUSE / 2, PAUSE))


def reconnecting(alias: str, call: Callable[[], T]) -> T:
    """Call what may be repeated, outside of any transaction: once more if the connection was lost and there is another.

    Raises:
        DatabaseUnreachable: if there is none.
    """
    try:
        return call()
    except Error as error:
        connection = connections[alias]
        if connection.in_atomic_block or not connection_lost(error):
            raise
        connection.close()
        reason = await_connection(alias)
        if reason is not None:
            raise DatabaseUnreachable(alias, reason) from error
        return call()
