"""Asks databases about themselves: whether they answer, what workers will find there, and which rows a queryset has.

`_runs/preflight.py` asks before any worker starts. Each of these questions uses a connection of its own and closes it,
but for SQLite's. Workers, and the caller that reads keys, wait for a server that may come back, for as long as
`PATIENCE`. Then the run ends with DatabaseUnreachable.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from django.db import Error, InterfaceError, OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import QuerySet
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
PAGE_SIZE = 5000
"""Keys that the caller reads with one query: enough to make its cost small, few enough to hold in memory."""
POSTGRESQL = """
    SELECT pg_backend_pid(), LEAST(
        current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
            - COALESCE(current_setting('reserved_connections', true)::int, 0)
            - (SELECT SUM(numbackends) FROM pg_stat_database) + 1,
        (SELECT CASE WHEN rolconnlimit >= 0 THEN rolconnlimit + 1
            - (SELECT COUNT(*) FROM pg_stat_activity WHERE usesysid = pg_roles.oid) END
            FROM pg_roles WHERE rolname = current_user),
        (SELECT CASE WHEN datconnlimit >= 0 THEN datconnlimit + 1 - (
            SELECT numbackends FROM pg_stat_database WHERE datid = pg_database.oid) END
            FROM pg_database WHERE datname = current_database()))
"""
"""The connections that are still free, without this one. Every role may read numbackends, and count the sessions of
others."""
PGBOUNCER_PORT = "6432"
"""PgBouncer's default port."""
MAX_COUNTED = 100_000
"""The most rows that are counted, which takes some 0.02 s."""


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


class DatabaseInfo(NamedTuple):
    """The answers of a database."""

    free: int | None = None
    """Connections that it accepts besides the open ones; None if it sets no limit."""
    pooler: tuple[str, ...] = ()
    """Signs that a pooler stands in front of it."""
    journal_mode: str | None = None
    """For a SQLite file; else None."""


def inspect_database(alias: str, settings: Mapping[str, Any]) -> DatabaseInfo:
    """Ask a database, with the settings of a worker.

    Raises:
        Exception: what the driver raises if the database cannot be reached.
    """
    connection = load_backend(settings["ENGINE"]).DatabaseWrapper(dict(settings), alias)
    inspect = INSPECTORS.get(connection.vendor)
    if inspect is None or (connection.vendor == "sqlite" and not _is_file(connection)):
        return DatabaseInfo()
    try:
        return inspect(connection)
    finally:
        connection.close()


def room_for_workers(aliases: Sequence[str], settings: Mapping[str, Mapping[str, Any]]) -> int | None:
    """How many more workers may connect to all these databases now; None if nothing limits them.

    They get half of the connections that are free, since other programs need some. SQLite has one writer, so that more
    workers than CPUs never pay.
    """
    sharing = aliases_per_server(aliases, settings)
    rooms = {alias: _free_connections(alias, settings[alias]) for alias in aliases}
    return min((room // (2 * sharing[alias]) for alias, room in rooms.items() if room is not None), default=None)


def aliases_per_server(aliases: Iterable[str], settings: Mapping[str, Mapping[str, Any]]) -> Mapping[str, int]:
    """How many of these aliases are databases of the same server, by alias: a worker connects to each of them."""
    addresses = {alias: tuple(settings[alias][key] for key in ("ENGINE", "HOST", "PORT")) for alias in aliases}
    counts = Counter(addresses.values())
    return {alias: counts[address] for alias, address in addresses.items()}


def _free_connections(alias: str, settings: Mapping[str, Any]) -> int | None:
    connection = load_backend(settings["ENGINE"]).DatabaseWrapper(dict(settings), alias)
    ask = FREE_CONNECTIONS.get(connection.vendor)
    try:
        return None if ask is None else max(0, ask(connection))
    except Error as error:
        return 0 if is_starting_or_full(error) else None
    finally:
        if connection.vendor != "sqlite":  # which was not opened
            connection.close()


def _is_file(connection: Any) -> bool:
    # A connection to a missing file would create it.
    return not connection.is_in_memory_db() and Path(connection.settings_dict["NAME"]).is_file()


def _ask_sqlite(connection: Any) -> DatabaseInfo:
    # SQLite keeps the file of a closed connection open as long as another one of this process has a lock, which with a
    # write-ahead log is always. A later run could not fork. So the caller's own is asked, past Django's log of queries.
    if (own := connections[connection.alias].connection) is not None:
        (mode,) = own.execute("PRAGMA journal_mode").fetchone()
    else:
        (mode,) = _row(connection, "PRAGMA journal_mode")
    return DatabaseInfo(journal_mode=mode)


def _ask_postgresql(connection: Any) -> DatabaseInfo:
    answering, free = _row(connection, POSTGRESQL)
    signs = []
    # A pooler invents the cancellation key of each client, and the process id in it.
    if connection.connection.info.backend_pid != answering:
        signs.append("another server process answers than the one that connected")
    if str(connection.settings_dict["PORT"]) == PGBOUNCER_PORT:
        signs.append(f"the port is {PGBOUNCER_PORT}")
    if connection.settings_dict.get("DISABLE_SERVER_SIDE_CURSORS"):
        signs.append("DISABLE_SERVER_SIDE_CURSORS is set")
    return DatabaseInfo(free=int(free), pooler=tuple(signs))


def _ask_mysql(connection: Any) -> DatabaseInfo:
    (limit,) = _row(connection, "SELECT @@max_connections")
    _name, used = _row(connection, "SHOW GLOBAL STATUS LIKE 'Threads_connected'")
    return DatabaseInfo(free=int(limit) - int(used) + 1)


def _row(connection: Any, query: str) -> tuple[Any, ...]:
    with connection.cursor() as cursor:
        cursor.execute(query)
        row: tuple[Any, ...] = cursor.fetchone()
    return row


INSPECTORS: Mapping[str, Callable[[Any], DatabaseInfo]] = {
    "sqlite": _ask_sqlite,
    "postgresql": _ask_postgresql,
    "mysql": _ask_mysql,
}


FREE_CONNECTIONS: Mapping[str, Callable[[Any], int]] = {
    "sqlite": lambda _connection: 0,
    "postgresql": lambda connection: int(_row(connection, POSTGRESQL)[1]),
    "mysql": lambda connection: _ask_mysql(connection).free or 0,
}


class PrimaryKeys:
    """The primary keys of a queryset's rows in ascending order, read page by page.

    It is a walk along the index (`pk > last ORDER BY pk LIMIT n`), so that it never skips rows when the work itself
    changes what the filter finds, and holds no cursor open between commits.
    """

    def __init__(self, queryset: QuerySet[Any]) -> None:
        self._model, self.alias = queryset.model, queryset.db
        self._keys: Any = queryset.order_by("pk").values_list("pk", flat=True)
        self._keys.query.standard_ordering = True  # whatever reverse() was called on
        self._keys.query.select_for_update = False  # the workers lock, in their own transactions

    def largest(self) -> Any:
        """Give the largest key of the whole table, not of the queryset: one look at the index. None: it is empty."""
        newest: Any = QuerySet(self._model, using=self.alias).order_by("-pk")  # a manager might leave rows out
        return newest.values_list("pk", flat=True).first()

    def page(self, *, above: Any, upto: Any) -> tuple[list[Any], bool]:
        """Give the next keys above one (None: from the first), up to another one, and whether these are the last."""
        keys = self._keys.filter(pk__lte=upto)
        if above is not None:
            keys = keys.filter(pk__gt=above)
        rows = list(keys[:PAGE_SIZE])
        # A filter across a to-many relation gives a row several times.
        return list(dict.fromkeys(rows)), len(rows) < PAGE_SIZE


def count_or_estimate(queryset: QuerySet[Any]) -> int | None:
    """Give the number of rows, for display only.

    Above `MAX_COUNTED` it is the server's estimate, or None if the server has none. SQLite keeps no statistics unless
    it is asked to, and counts in the caller's process at any size.
    """
    rows = queryset.order_by()
    rows.query.select_for_update = False
    vendor = connections[queryset.db].vendor
    if vendor == "sqlite":
        return rows.count()
    counted = rows.values("pk")[: MAX_COUNTED + 1].count()
    if counted <= MAX_COUNTED:
        return counted
    estimate = ESTIMATES.get(vendor, _unknown)(rows)
    return None if estimate is None else max(estimate, counted)


def _by_postgresql(rows: QuerySet[Any]) -> int | None:
    (answer,) = json.loads(rows.explain(format="JSON"))
    return int(answer["Plan"]["Plan Rows"])


def _by_mysql(rows: QuerySet[Any]) -> int | None:
    if rows.query.where or rows.query.distinct or len(rows.query.alias_map) > 1:
        return None  # its statistics count a whole table, without filters and joins
    with connections[rows.db].cursor() as cursor:
        cursor.execute(
            "SELECT table_rows FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = %s",
            [rows.model._meta.db_table],
        )
        row = cursor.fetchone()
    return None if row is None else row[0]


def _unknown(_rows: QuerySet[Any]) -> int | None:
    return None


ESTIMATES = {"postgresql": _by_postgresql, "mysql": _by_mysql}
