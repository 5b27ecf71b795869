"""What a fork needs, by rules 1 and 4 of `connections.py`: SQLite files are closed before it, and the child touches
nothing that it inherits. Open files and sockets are found as the kernel lists them, whatever driver they belong to.

`_worker/job.py` calls `close_sqlite_files` and `pin_connections` in the parent, and `discard_inherited_connections` in
the child. The fork server (`_environment/preload.py`) asks for open files and sockets.
"""

from __future__ import annotations

import gc
import os
import re
import socket
import stat
import struct
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from asgiref.local import Local
from django.core.cache import caches
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import load_backend

from ..errors import InsideTransaction, InvalidOperation
from .connections import (
    UseRefused,
    installed_aliases,
    open_sqlite_files,
    outside_event_loop,
    path_of,
    wrappers_of_thread,
)

FOLDER = "/proc/self/fd"
DEFAULT_PORTS = {"postgresql": "5432", "mysql": "3306", "oracle": "1521"}
SOCKET_FILES = {"postgresql": re.compile(r"/\.s\.PGSQL\.\d+$"), "mysql": re.compile(r"(mysql|maria)[^/]*$")}
"""Patterns of the path of a local server's socket, for databases whose settings do not give it."""
NOT_YOURS = "this connection was opened before the worker began: get one from django.db.connections in the function"
_kept_alive: list[object] = []
_clean_pids = {os.getpid()}
"""Ids of processes that hold nothing inherited: the one that imported this, and children that have discarded it."""


def can_close_sqlite_files() -> bool:
    """Whether this thread has opened every SQLite file that is open in this process, and no transaction is open."""
    files = open_sqlite_files()
    return not any(wrapper.in_atomic_block for wrapper in files) and open_sqlite_descriptors().total() <= len(files)


def close_sqlite_files() -> None:
    """Close the SQLite files of this thread, before a fork.

    Raises:
        InsideTransaction: if one of them is inside a transaction, so that it cannot be closed.
        InvalidOperation: if one is open elsewhere in this process.
    """
    files = open_sqlite_files()
    _check_no_transaction(files)
    for wrapper in files:
        (enforced,) = wrapper.connection.execute("PRAGMA foreign_keys").fetchone()
        with outside_event_loop():
            wrapper.close()
        if not enforced:
            _reopen_unenforced(wrapper)
    for alias in open_sqlite_descriptors():
        raise InvalidOperation(
            f"the SQLite database {alias!r} is open in another thread or event loop of this process, or by sqlite3 "
            'itself, and its locks do not survive a fork: close it there, or use start_method="forkserver"'
        )


def _reopen_unenforced(wrapper: Any) -> None:
    """Let the next connection keep foreign keys unenforced.

    A schema editor has asked for that: it remakes tables by dropping them, and a cascade would delete the rows that
    refer to them.
    """

    def init_once() -> None:
        del wrapper.init_connection_state  # this instance's own method; later connections use the class's
        wrapper.init_connection_state()
        wrapper.connection.execute("PRAGMA foreign_keys = OFF")

    wrapper.init_connection_state = init_once


def check_no_open_sqlite_transaction() -> None:
    """Refuse to fork while a SQLite file is inside a transaction of this thread.

    Raises:
        InsideTransaction: naming the alias.
    """
    _check_no_transaction(open_sqlite_files())


def _check_no_transaction(wrappers: Iterable[Any]) -> None:
    for wrapper in wrappers:
        if wrapper.in_atomic_block:
            raise InsideTransaction(wrapper.alias)


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
    # First of all: nothing that is finalised from here on can reach a server by them.
    descriptors = [*open_descriptors()]
    cut_database_sockets(descriptors)
    sqlite = [*_sqlite_descriptors(descriptors)]
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


def open_descriptors() -> Iterator[tuple[int, str]]:
    """Give each descriptor and its target; nothing where there is no /proc."""
    if not os.path.isdir(FOLDER):
        return
    for name in os.listdir(FOLDER):
        with suppress(FileNotFoundError):  # the descriptor of the listing itself
            yield int(name), os.readlink(f"{FOLDER}/{name}")


def open_sockets() -> frozenset[str]:
    """Give the names of the open sockets."""
    return frozenset(target for _number, target in open_descriptors() if target.startswith("socket:"))


def open_sqlite_descriptors() -> Counter[str]:
    """Count the descriptors of each SQLite database file of the project, by alias."""
    return _sqlite_descriptors(open_descriptors())


def _sqlite_descriptors(descriptors: Iterable[tuple[int, str]]) -> Counter[str]:
    files = dict(_sqlite_files())
    counts: Counter[str] = Counter()
    for number, target in descriptors if files else ():
        with suppress(OSError):
            if target.startswith("/") and (alias := files.get(_identity(os.fstat(number)))):
                counts[alias] += 1
    return counts


def _sqlite_files() -> Iterator[tuple[tuple[int, int], str]]:
    for alias in installed_aliases():
        settings = connections.settings[alias]
        if _vendor(settings) == "sqlite":
            with suppress(OSError):  # in memory, or not made yet
                status = os.stat(path_of(settings))
                if stat.S_ISREG(status.st_mode):
                    yield _identity(status), alias


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _vendor(settings: dict[str, Any]) -> str:
    vendor: str = load_backend(settings["ENGINE"]).DatabaseWrapper.vendor
    return vendor


def cut_database_sockets(descriptors: Iterable[tuple[int, str]]) -> None:
    """Replace each database socket among a forked child's descriptors by a dead one.

    Nothing that the child does with its copy then reaches the server or the parent, whose socket stays open. This
    covers connections without a Django wrapper too: those of a module, a thread or a pool.
    """
    for number, vendor in _database_sockets(descriptors):
        near, far = socket.socketpair()
        with near, far:
            if vendor == "postgresql":
                far.sendall(_fatal_error(NOT_YOURS))  # libpq reads it when it notices that it cannot write
            os.dup2(near.fileno(), number, inheritable=False)


def _database_sockets(descriptors: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
    numbers = [number for number, target in descriptors if target.startswith("socket:")]
    if not numbers:
        return []
    # With a default time-out, `socket.socket(fileno=...)` makes the socket non-blocking, in the parent as well.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(None)
    try:
        addresses = dict(_database_addresses())
        return [(number, vendor) for number in numbers if (vendor := _vendor_of_peer(_peer(number), addresses))]
    finally:
        socket.setdefaulttimeout(before)


def _fatal_error(message: str) -> bytes:
    """Build an ErrorResponse of PostgreSQL's protocol, with an SQLSTATE for which no client tries again (55000)."""
    fields = b"".join(part.encode() + b"\0" for part in ("SFATAL", "VFATAL", "C55000", f"M{message}", ""))
    return b"E" + struct.pack("!I", 4 + len(fields)) + fields


def _vendor_of_peer(peer: Any, addresses: dict[Any, str]) -> str | None:
    if peer in addresses:
        return addresses[peer]
    if isinstance(peer, tuple):
        return addresses.get(peer[1])  # its port
    return _vendor_of_file(peer) if peer else None


def _peer(number: int) -> Any:
    """Give the address that a socket is connected to; None if it is not connected, or no stream."""
    with suppress(OSError):
        copy = socket.socket(fileno=number)
        try:
            return copy.getpeername() if copy.type == socket.SOCK_STREAM else None
        finally:
            copy.detach()
    return None


def _vendor_of_file(peer: str | bytes) -> str | None:
    path = os.fsdecode(peer)
    return next((vendor for vendor, pattern in SOCKET_FILES.items() if pattern.search(path)), None)


def _database_addresses() -> Iterator[tuple[Any, str]]:
    """Give the ports and paths in the project's settings, and the addresses of its open connections.

    The name of a host is not resolved, since that may take long: its port is enough.
    """
    for alias in installed_aliases():
        settings = connections.settings[alias]
        vendor, options = _vendor(settings), settings.get("OPTIONS", {})
        port = settings.get("PORT") or options.get("port") or DEFAULT_PORTS.get(vendor, "")
        for part in str(port).split(","):
            if part.isdigit():
                yield int(part), vendor
        if path := options.get("unix_socket") or settings.get("HOST"):
            yield path, vendor
    wrappers: Any = connections.all(initialized_only=True)
    for wrapper in wrappers:
        if hasattr(wrapper.connection, "fileno"):
            with suppress(Exception):  # what a driver raises for a closed connection
                yield _peer(wrapper.connection.fileno()), wrapper.vendor
