"""What is refused in the caller before any worker starts: databases that workers could not see, or would wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from .._db.connections import DUMMY_ENGINE, outside_event_loop
from ..errors import InsideTransaction, InvalidOption, SharedMemoryDatabase


def check_aliases_exist(aliases: Iterable[str]) -> None:
    """Refuse aliases that settings.DATABASES does not have.

    Raises:
        InvalidOption: naming the alias.
        ImproperlyConfigured: if there is no database at all.
    """
    for alias in aliases:
        if alias not in connections.settings:
            known = ", ".join(map(repr, connections.settings))
            raise InvalidOption("databases", alias, f"settings.DATABASES has only {known}")
        if connections.settings[alias]["ENGINE"] == DUMMY_ENGINE:
            raise ImproperlyConfigured(
                f"settings.DATABASES has no {alias!r} database for a transaction per object: "
                "configure it, or set transaction=None for functions that need no database"
            )


def check_no_open_transaction(aliases: Iterable[str]) -> None:
    """Refuse to go on while the caller is inside a transaction on one of the aliases.

    Raises:
        InsideTransaction: naming the alias and what to do.
    """
    for alias in aliases:
        for connection in _connections_of_caller(alias):
            if connection.in_atomic_block or (connection.connection is not None and not connection.autocommit):
                raise InsideTransaction(alias)


def check_in_no_block(aliases: Iterable[str], advice: str | None = None) -> None:
    """Refuse to go on while the caller is inside atomic() on one of the aliases.

    A transaction without atomic() is let pass: with AUTOCOMMIT off every read opens one, which holds no locks.

    Raises:
        InsideTransaction: naming the alias and what to do.
    """
    for alias in aliases:
        if _is_in_block(alias):
            raise InsideTransaction(alias, advice)


HELD_BY_INPUT = (
    "the input has opened it and holds it while workers run; let it read inside atomic() and yield outside of it, or "
    'lock in the function, or use executor="serial"'
)


def is_in_block(aliases: Iterable[str]) -> bool:
    """Whether the caller is inside atomic() on one of the aliases."""
    return any(map(_is_in_block, aliases))


def _is_in_block(alias: str) -> bool:
    return any(connection.in_atomic_block for connection in _connections_of_caller(alias))


def _connections_of_caller(alias: str) -> tuple[Any, ...]:
    if asyncio._get_running_loop() is None:
        return (connections[alias],)
    with outside_event_loop():  # a transaction around asyncio.run() counts, too
        outer = connections[alias]
    return connections[alias], outer


def check_reachable(aliases: Iterable[str], *, shares_memory: bool) -> None:
    """Refuse in-memory SQLite databases that the workers would not see.

    Raises:
        SharedMemoryDatabase: naming the alias and the executors that work.
    """
    for alias in aliases:
        name = str(connections[alias].settings_dict["NAME"])
        if not _in_memory(alias):
            continue
        shared_cache = name != ":memory:"
        if not shares_memory or not shared_cache:
            ways_out = 'executor="thread" or executor="serial"' if shared_cache else 'executor="serial"'
            raise SharedMemoryDatabase(alias, name, ways_out)


def any_in_memory(aliases: Iterable[str]) -> bool:
    """Whether an alias is SQLite in memory, where threads must take turns.

    SQLite answers SQLITE_LOCKED at once there, whatever the time-out.
    """
    return any(_in_memory(alias) for alias in aliases)


def _in_memory(alias: str) -> bool:
    connection: Any = connections[alias]
    return connection.vendor == "sqlite" and bool(connection.is_in_memory_db())
