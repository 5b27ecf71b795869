"""What throttles need to take a reading: a connection for one look, and what they may know of their run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import DEFAULT_DB_ALIAS, Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import load_backend

from .._db.connections import outside_event_loop, worker_settings
from ..errors import InvalidOption

STATEMENT_TIMEOUT = 500
"""Milliseconds for a statement. The caller looks once a second, and its workers may be waiting for chunks meanwhile."""
CONNECT_TIMEOUT = 2
"""Seconds for a connection: libpq takes no less. So long may a Ctrl-C have to wait."""
OPTIONS: dict[str, dict[str, Any]] = {
    "postgresql": {"connect_timeout": CONNECT_TIMEOUT, "tcp_user_timeout": 1000 * CONNECT_TIMEOUT},
    "mysql": {"connect_timeout": CONNECT_TIMEOUT, "read_timeout": CONNECT_TIMEOUT},
}
"""By vendor: no look outlasts a server that has gone without a word."""
MOST_MARKS = 10_000
"""Marks of a trail that are kept. A replica that is further behind counts as so far behind."""


class Unreadable(Exception):
    """A reading cannot be taken, though the server has answered."""


UNREADABLE = (Error, OSError, Unreadable)
"""What a throttle raises if a server, or the way to it, is at fault, and not the throttle's own code."""


class Trail:
    """Marks that a primary has passed, with the times at which it did: by them a replica shows how far it is behind."""

    def __init__(self) -> None:
        self._marks: deque[tuple[Any, float]] = deque(maxlen=MOST_MARKS)

    def note(self, mark: Any) -> None:
        """Add a mark, which is no smaller than the last one, and which the primary has now."""
        if self._marks and self._marks[-1][0] == mark:
            self._marks.pop()
        self._marks.append((mark, time.monotonic()))

    def behind(self, seen: Any) -> float | None:
        """Give the seconds that a replica with the mark `seen` is behind; None if that was before the trail.

        It fell behind between the mark that it has and the next one. The middle is at most half an interval wrong.
        """
        passed = None
        while self._marks and self._marks[0][0] <= seen:
            passed = self._marks.popleft()
        if passed is not None:
            self._marks.appendleft(passed)
        if passed is None or len(self._marks) == 1:
            return None if passed is None else 0.0
        return time.monotonic() - (passed[1] + self._marks[1][1]) / 2

    @property
    def seconds(self) -> float:
        """Seconds since the first mark that is known."""
        return time.monotonic() - self._marks[0][1] if self._marks else 0.0


class Heartbeats:
    """The heartbeats that a durable run writes. The run notes each one when it is committed.

    `query` is a queryset that gives the heartbeat as its only value, on whichever connection it is compiled for.
    `alias` is the database in which it is written.
    """

    def __init__(self, query: Any, alias: str) -> None:
        self._query = query
        self.alias = alias
        self.trail = Trail()

    def wrote(self, heartbeat: datetime) -> None:
        """Take note of a heartbeat that has been committed now."""
        self.trail.note(heartbeat)

    def read(self, connection: BaseDatabaseWrapper) -> datetime | None:
        """Read it on another server; None if the run is not there yet."""
        rows = self._query.query.get_compiler(connection=connection).results_iter()
        return next((row[0] for row in rows), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """What throttles may know of the run that they throttle."""

    databases: tuple[str, ...] = ("default",)
    """The aliases that it writes to, the most important one first."""
    busy: Callable[[], int] = int
    """How many of its workers have a chunk."""
    heartbeats: Heartbeats | None = None
    """Of a durable run."""


@contextmanager
def look_at(alias: str) -> Iterator[BaseDatabaseWrapper]:
    """Open a connection for one look, with a time-out for each statement, and close it.

    It is open for milliseconds, while the caller does nothing else. So no fork inherits it, and a pooler, a failover or
    a server that hangs cannot leave a broken one behind.
    """
    settings = worker_settings(own_transactions=(alias,))[alias]
    connection = load_backend(settings["ENGINE"]).DatabaseWrapper(settings, alias)
    settings["OPTIONS"].update(OPTIONS.get(connection.vendor, {}))
    with outside_event_loop():  # this wrapper is used here only
        try:
            _limit_statements(connection)
            yield connection
            if connection.vendor == "postgresql":
                row_of(connection, "ROLLBACK")
        finally:
            connection.close()


def _limit_statements(connection: Any) -> None:
    if connection.vendor == "postgresql":
        # For a transaction, since a pooler may give the session to others.
        row_of(connection, f"BEGIN; SET LOCAL statement_timeout = {STATEMENT_TIMEOUT}")
    elif connection.mysql_is_mariadb:
        row_of(connection, f"SET SESSION max_statement_time = {STATEMENT_TIMEOUT / 1000}")
    else:
        row_of(connection, f"SET SESSION max_execution_time = {STATEMENT_TIMEOUT}")


def row_of(connection: BaseDatabaseWrapper, statement: str, parameters: Any = None) -> Any:
    """Give the first row of a statement; None if it gives no rows."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchone() if cursor.description else None


def first_of(databases: tuple[str, ...]) -> str:
    """Give the alias that a throttle takes if it names none."""
    return databases[0] if databases else DEFAULT_DB_ALIAS


def check_alias(name: str, alias: str) -> None:
    """Refuse an alias without a server that could be looked at.

    Raises:
        InvalidOption: naming the alias.
    """
    if alias not in connections.settings:
        raise InvalidOption(name, alias, f"settings.DATABASES has only {', '.join(map(repr, connections.settings))}")
    vendor = connections[alias].vendor
    if vendor not in OPTIONS:
        raise InvalidOption(name, alias, f"it is for PostgreSQL and MariaDB, and this database is {vendor}")
