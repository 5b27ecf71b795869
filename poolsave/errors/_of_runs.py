"""Errors of a whole run: it is refused before anything starts, or what it needs has gone."""

from __future__ import annotations

from ._base import PoolsaveError


class InvalidOption(PoolsaveError, ValueError):
    """An option has a value that cannot work."""

    def __init__(self, name: str, value: object, expected: str, source: str = "") -> None:
        super().__init__(name, value, expected, source)
        self.name = name
        self.value = value
        self.expected = expected
        self.source = source

    def __str__(self) -> str:
        where = f" (from {self.source})" if self.source else ""
        return f"{self.name}={self.value!r}{where} is not valid: {self.expected}"


class InvalidOperation(PoolsaveError, TypeError):
    """A pool cannot run a function, or cannot feed it these objects."""


class InsideTransaction(PoolsaveError):
    """A run was started while the caller has an open transaction.

    Workers have connections of their own. They cannot see the caller's uncommitted rows. For locks that the caller
    holds they would wait for ever, and the database does not recognise that as a deadlock.
    """

    def __init__(self, alias: str, advice: str | None = None) -> None:
        super().__init__(alias, advice)
        self.alias = alias
        self.advice = advice

    def __str__(self) -> str:
        advice = self.advice or (
            "leave the atomic() block before calling the pool; in a migration set `atomic = False` on the Migration "
            'class; to stay inside the transaction use executor="serial", in tests poolsave.testing.serial_saves()'
        )
        return (
            f"the database {self.alias!r} is inside a transaction, which workers can neither see nor wait for: {advice}"
        )


class SharedMemoryDatabase(PoolsaveError):
    """A worker would not see the caller's in-memory SQLite database."""

    def __init__(self, alias: str, name: str, ways_out: str) -> None:
        super().__init__(alias, name, ways_out)
        self.alias = alias
        self.name = name
        self.ways_out = ways_out

    def __str__(self) -> str:
        return (
            f"the database {self.alias!r} is SQLite in memory ({self.name!r}), which these workers cannot see: use "
            f"{self.ways_out}, or a database file (in tests: "
            f'DATABASES["{self.alias}"]["TEST"]["NAME"])'
        )


class ClusterUnusable(PoolsaveError):
    """A cluster has no worker for a run, or a worker with other versions than the caller."""


class DatabaseUnreachable(PoolsaveError):
    """A database cannot be connected to: a run is refused, or a server has gone in the middle of a run.

    In the middle of a run it is raised after 3 seconds without any connection. If the server says that it is starting,
    or that it has too many connections, it is raised after 30 seconds more (on PostgreSQL, if it says so in English).
    `report` has the outcomes: what was at work has failed or is lost, and the rest is skipped. `reason` is the driver's
    message, and `__cause__` the error of the object that had no connection.
    """

    def __init__(self, alias: str, reason: str) -> None:
        super().__init__(alias, reason)
        self.alias = alias
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"cannot connect to the database {self.alias!r} ({self.reason}): check that its server runs and takes "
            f"connections, and that settings.DATABASES has its address, name, user and password"
        )
