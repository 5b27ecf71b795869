"""What a forked child has of its parent, and must not touch: rule 1 of `_connections`."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterable
from typing import Any

from asgiref.local import Local
from django.core.cache import caches
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from ..errors import InvalidOperation
from .connections import UseRefused, wrappers_of_thread
from .descriptors import cut_database_sockets, open_sqlite_descriptors

_kept_alive: list[object] = []
_clean_pids = {os.getpid()}
"""Processes that have forgotten what they inherited, and the one that has imported this, which inherited nothing."""


def pin_connections() -> tuple[object, ...]:
    """Right before a fork: give every wrapper that is alive, in whichever thread, and every connection of mysqlclient.

    CPython clears the thread-locals of all other threads in the child, and with them their wrappers, whose drivers
    may close the socket that the parent uses. Who holds them keeps them from being finalised there. mysqlclient does
    so whoever opened the connection, also the user's own code, past Django.
    """
    drivers = sys.modules.get("MySQLdb._mysql")
    held = BaseDatabaseWrapper if drivers is None else (BaseDatabaseWrapper, drivers.connection)
    # type() and not isinstance(): the latter asks lazy objects for their __class__, which evaluates them.
    # Through a list: a tuple that grows is spoilt if another thread, doing the same, finds it among the objects.
    return tuple([found for found in gc.get_objects() if issubclass(type(found), held)])


def discard_inherited_connections(held: Iterable[object] = ()) -> None:
    """In a forked child: let go of the parent's connections, pools and cache clients without touching them.

    Who keeps one of them, such as a module that keeps a cursor, gets an error when it is used.
    Once, and not in a process that nobody has forked: other threads of it may be in the middle of something.
    """
    if os.getpid() in _clean_pids:
        return
    _clean_pids.add(os.getpid())
    _kept_alive.extend(held)
    cut_database_sockets()
    sqlite = [*open_sqlite_descriptors()]
    for wrapper in (*wrappers_of_thread(), *held):
        if isinstance(wrapper, BaseDatabaseWrapper):
            wrapper.wrap_database_errors = UseRefused(wrapper)
    handlers: tuple[Any, ...] = (connections, caches)
    for handler in handlers:
        local: Any = handler._connections
        _kept_alive.extend((local, *handler.all(initialized_only=True)))
        handler._connections = Local(handler.thread_critical)
    _forget_pools()
    if sqlite:
        raise InvalidOperation(
            f"this process was forked while the SQLite database {sqlite[0]!r} was open, so that neither can rely "
            "on its locks: close it before the executor starts its processes, or have them started by spawn"
        )


def _forget_pools() -> None:
    backend = sys.modules.get("django.db.backends.postgresql.base")
    if backend is not None:
        pools: dict[str, object] = backend.DatabaseWrapper._connection_pools
        _kept_alive.append(dict(pools))
        pools.clear()
