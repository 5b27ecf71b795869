"""What a forked child inherits and must not touch: rule 1 of `connections.py`.

`_worker/job.py` calls `pin_connections` in the parent and `discard_inherited_connections` in the child.
"""

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
"""Ids of processes that hold nothing inherited: the one that imported this, and children that have discarded it."""


def pin_connections() -> tuple[object, ...]:
    """Give every live wrapper of every thread, and every connection of mysqlclient, right before a fork.

    In the child CPython clears the thread-locals of all other threads. Their wrappers are finalised, and the drivers
    may close the socket that the parent uses. A reference to them prevents that. With mysqlclient it concerns every
    connection, also those that the user's code has opened past Django.
    """
    drivers = sys.modules.get("MySQLdb._mysql")
    classes = BaseDatabaseWrapper if drivers is None else (BaseDatabaseWrapper, drivers.connection)
    # type() and not isinstance(), which reads `__class__` and so evaluates lazy objects.
    # Through a list: a tuple under construction breaks if another thread finds it in gc.get_objects() meanwhile.
    return tuple([value for value in gc.get_objects() if issubclass(type(value), classes)])


def discard_inherited_connections(held: Iterable[object] = ()) -> None:
    """Drop the parent's connections, pools and cache clients in a forked child, without touching them.

    Code that still refers to one, such as a module with a cursor of its own, gets an error when it uses it. Runs once
    per process, and not in one that was not forked: its other threads may be using their connections.
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
