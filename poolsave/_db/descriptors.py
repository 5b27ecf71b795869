"""Open files and sockets of this process as the kernel lists them, whatever driver they belong to.

Called before a fork and in its child (`fork_safety.py`), and by the fork server (`_environment/preload.py`).
"""

from __future__ import annotations

import os
import re
import socket
import stat
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urlsplit

from django.db import connections
from django.db.utils import load_backend

FOLDER = "/proc/self/fd"
DEFAULT_PORTS = {"postgresql": "5432", "mysql": "3306", "oracle": "1521"}
SOCKET_FILES = {"postgresql": re.compile(r"/\.s\.PGSQL\.\d+$"), "mysql": re.compile(r"(mysql|maria)[^/]*$")}
"""Patterns of the path of a local server's socket, for databases whose settings do not give it."""
NOT_YOURS = "this connection was opened before the worker began: get one from django.db.connections in the function"


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
    files = dict(_sqlite_files())
    counts: Counter[str] = Counter()
    for number, target in open_descriptors() if files else ():
        with suppress(OSError):
            if target.startswith("/") and (alias := files.get(_identity(os.fstat(number)))):
                counts[alias] += 1
    return counts


def _sqlite_files() -> Iterator[tuple[tuple[int, int], str]]:
    for alias, settings in connections.settings.items():
        if _vendor(settings) == "sqlite":
            name = str(settings["NAME"])
            path = unquote(urlsplit(name).path) if name.startswith("file:") else name
            with suppress(OSError):  # in memory, or not made yet
                status = os.stat(path)
                if stat.S_ISREG(status.st_mode):
                    yield _identity(status), alias


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _vendor(settings: dict[str, Any]) -> str:
    vendor: str = load_backend(settings["ENGINE"]).DatabaseWrapper.vendor
    return vendor


def cut_database_sockets() -> None:
    """Replace each database socket of a forked child by a dead one.

    Nothing that the child does with its copy then reaches the server or the parent, whose socket stays open. This
    covers connections without a Django wrapper too: those of a module, a thread or a pool.
    """
    for number, vendor in _open_database_sockets():
        near, far = socket.socketpair()
        with near, far:
            if vendor == "postgresql":
                far.sendall(_fatal_error(NOT_YOURS))  # libpq reads it when it notices that it cannot write
            os.dup2(near.fileno(), number, inheritable=False)


def _open_database_sockets() -> list[tuple[int, str]]:
    # With a default time-out, `socket.socket(fileno=...)` makes the socket non-blocking, in the parent as well.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(None)
    try:
        return [*_database_sockets(dict(_database_addresses()))]
    finally:
        socket.setdefaulttimeout(before)


def _fatal_error(message: str) -> bytes:
    """Build an ErrorResponse of PostgreSQL's protocol, with an SQLSTATE for which no client tries again (55000)."""
    fields = b"".join(part.encode() + b"\0" for part in ("SFATAL", "VFATAL", "C55000", f"M{message}", ""))
    return b"E" + struct.pack("!I", 4 + len(fields)) + fields


def _database_sockets(addresses: dict[Any, str]) -> Iterator[tuple[int, str]]:
    for number, target in open_descriptors():
        if target.startswith("socket:") and (peer := _peer(number)):
            by_port = addresses.get(peer[1]) if isinstance(peer, tuple) else _vendor_of_file(peer)
            vendor = addresses.get(peer) or by_port
            if vendor is not None:
                yield number, vendor


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
    for settings in connections.settings.values():
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
