"""`ServerLoad`: what else a server is at work on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .._db.connections import session_mark
from ..errors import InvalidOption
from ._reading import RunView, check_alias, first_of, look_at, row_of

OTHERS = """
    SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND backend_type = 'client backend'
    AND pid <> pg_backend_pid() AND position(%s in application_name) = 0
"""
"""Queries of sessions that no worker of this process has opened."""
ALL_QUERIES = """
    SELECT count(*) FROM information_schema.processlist
    WHERE command IN ('Query', 'Execute') AND id <> connection_id()
"""


@dataclass(frozen=True, slots=True, repr=False)
class ServerLoad:
    """Start nothing new while the server runs so many queries besides those of the run: `ServerLoad(running=20)`.

    Queries that wait for a lock count, and those on other databases of the server as well. A role sees the queries of
    other roles only with `pg_read_all_stats` (PostgreSQL) or `PROCESS` (MariaDB). PostgreSQL tells sessions apart by
    their `application_name`, which is that of the run in its workers. MariaDB does not say whose a session is, so that
    one query for each busy worker is taken for the run's own.

    Raises:
        InvalidOption: if `running` is no whole number from 1.
    """

    running: int
    using: str | None = None
    """The alias of the server; None: that of the run's first database."""
    _marks_sessions = True

    def __post_init__(self) -> None:
        if isinstance(self.running, bool) or not isinstance(self.running, int) or self.running < 1:
            raise InvalidOption("running", self.running, "give a whole number of queries from 1")

    def _check(self, databases: tuple[str, ...]) -> None:
        """Refuse an alias without a server.

        Raises:
            InvalidOption: naming the alias.
        """
        check_alias("using", self.using or first_of(databases))

    def _for_run(self, run: RunView) -> Callable[[], Any]:
        """Give the throttle of one run."""
        return _LoadReader(replace(self, using=self.using or first_of(run.databases)), run)

    def __call__(self) -> tuple[float, str] | None:
        """Look now, without a run: all queries are those of others."""
        reader: Callable[[], tuple[float, str] | None] = self._for_run(RunView())
        return reader()

    def __repr__(self) -> str:
        using = "" if self.using is None else f", using={self.using!r}"
        return f"ServerLoad(running={self.running!r}{using})"


class _LoadReader:
    def __init__(self, load: ServerLoad, run: RunView) -> None:
        self._load = load
        self._run = run

    def __call__(self) -> tuple[float, str] | None:
        assert self._load.using is not None
        busy = self._run.busy()
        with look_at(self._load.using) as connection:
            if connection.vendor == "postgresql":
                others = row_of(connection, OTHERS, [session_mark()])[0]
            else:
                others = max(0, row_of(connection, ALL_QUERIES)[0] - busy)
        if others < self._load.running:
            return None
        return 0.0, f"{self._load.using!r} runs {others} other queries (running={self._load.running})"
