"""`ReplicaLag`: how far a replica is behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from django.db import connections

from ..errors import InvalidOption
from ._reading import Heartbeats, RunView, Trail, Unreadable, check_alias, first_of, look_at, row_of

WRITTEN = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint, extract(epoch FROM clock_timestamp())::float8"
REPLAYED = """
    SELECT pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint,
        extract(epoch FROM pg_last_xact_replay_timestamp())::float8, pg_is_in_recovery()
"""


@dataclass(frozen=True, slots=True, repr=False)
class ReplicaLag:
    """Slow down as a replica falls behind: `ReplicaLag("replica", soft=1, hard=10)`.

    Up to `soft` seconds nothing changes; from there fewer workers get chunks; from `hard` on nothing new starts. A
    replica that has all that its primary has is not behind, however long nothing was written.

    A durable run whose ledger is on the primary reads its own heartbeat on the replica, on PostgreSQL and MariaDB,
    without any grant. Any other run compares the positions of primary and replica in the log of PostgreSQL, which every
    role may read.

    Raises:
        InvalidOption: if these are not `0 <= soft < hard` seconds, or the alias is no text.
    """

    replica: str
    """Its alias in `settings.DATABASES`."""
    soft: float = 1
    hard: float = 10
    primary: str | None = None
    """The alias of its primary; None: that of the run's first database."""

    def __post_init__(self) -> None:
        if not isinstance(self.replica, str):
            raise InvalidOption("replica", self.replica, 'give the alias of a replica, as in ReplicaLag("replica")')
        for name in ("soft", "hard"):
            seconds = getattr(self, name)
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
                raise InvalidOption(name, seconds, "give seconds from 0")
        if self.soft >= self.hard:
            raise InvalidOption("hard", self.hard, f"give more seconds than soft={self.soft!r}")

    def _check(self, databases: tuple[str, ...]) -> None:
        """Refuse aliases without a server, and a replica that would be its own primary.

        Raises:
            InvalidOption: naming the alias.
        """
        primary = self.primary or first_of(databases)
        check_alias("replica", self.replica)
        check_alias("primary", primary)
        if primary == self.replica:
            raise InvalidOption("replica", self.replica, "the run writes to it, so name another alias, or its primary")

    def _for_run(self, run: RunView) -> Callable[[], Any]:
        """Give the throttle of one run, which remembers what it has seen."""
        lag = replace(self, primary=self.primary or first_of(run.databases))
        if run.heartbeats is not None and run.heartbeats.alias == lag.primary:
            return _HeartbeatReader(lag, run.heartbeats)
        return _LogReader(lag)

    def __call__(self) -> tuple[float, str]:
        """Look now, without a run."""
        reader: Callable[[], tuple[float, str]] = self._for_run(RunView())
        return reader()

    def _answer(self, behind: float) -> tuple[float, str]:
        """Give the share for a replica that is so many seconds behind, and the reason."""
        share = min(1.0, max(0.0, (self.hard - behind) / (self.hard - self.soft)))
        return share, f"the replica {self.replica!r} is {behind:.1f} s behind (soft={self.soft:g}, hard={self.hard:g})"

    def __repr__(self) -> str:
        primary = "" if self.primary is None else f", primary={self.primary!r}"
        return f"ReplicaLag({self.replica!r}, soft={self.soft!r}, hard={self.hard!r}{primary})"


class _HeartbeatReader:
    """By the heartbeats that the caller has written, all by the caller's clock.

    Before the first of this session has arrived they say only that the replica is behind by less than the session is
    old, or by more. PostgreSQL's log knows by how much.
    """

    def __init__(self, lag: ReplicaLag, heartbeats: Heartbeats) -> None:
        self._lag = lag
        self._heartbeats = heartbeats
        self._by_log = _LogReader(lag)

    def __call__(self) -> tuple[float, str]:
        with look_at(self._lag.replica) as connection:
            seen = self._heartbeats.read(connection)
            has_log = connection.vendor == "postgresql"
        trail = self._heartbeats.trail
        behind = None if seen is None else trail.behind(seen)
        if behind is None and has_log:
            return self._by_log()
        return self._lag._answer(trail.seconds if behind is None else behind)


class _LogReader:
    """By what the primary has written and the replica has replayed, all by the primary's clock.

    The time of the last transaction that was replayed is the exact answer where many are committed. Where few are, it
    was long ago although nothing is missing; then the positions count at which the primary was seen before.
    """

    def __init__(self, lag: ReplicaLag) -> None:
        self._lag = lag
        self._trail = Trail()

    def __call__(self) -> tuple[float, str]:
        primary, replica = self._lag.primary, self._lag.replica
        assert primary is not None
        if connections[replica].vendor != "postgresql":
            raise InvalidOption(
                "throttle", self._lag, f"on MariaDB it needs a durable run with its ledger on {primary!r}"
            )
        with look_at(primary) as connection:
            written, now = row_of(connection, WRITTEN)
        self._trail.note(written)
        with look_at(replica) as connection:
            replayed, committed_at, is_replica = row_of(connection, REPLAYED)
        if not is_replica or replayed is None:
            raise Unreadable(f"the database {replica!r} is no replica that follows a primary")
        since_commit = None if committed_at is None else max(0.0, now - committed_at)
        return self._lag._answer(self._behind(replayed, since_commit))

    def _behind(self, replayed: int, since_commit: float | None) -> float:
        known = [seconds for seconds in (self._trail.behind(replayed), since_commit) if seconds is not None]
        return min(known, default=self._trail.seconds)
