"""Open files and sockets of this process, as the kernel knows them, whatever driver they belong to."""

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
"""How a path looks that is a server's socket on this machine, if no setting gives it."""
NOT_YOURS = "this connection was opened before the worker began: get one from django.db.connections in the function"


def open_descriptors() -> Iterator[tuple[int, str]]:
    """Each descriptor and what it leads to; nothing where there is no /proc."""
    if not os.path.isdir(FOLDER):
        return
    for name in os.listdir(FOLDER):
        with suppress(FileNotFoundError):  # that of the listing itself
            yield int(name), os.readlink(f"{FOLDER}/{name}")


def open_sockets() -> frozenset[str]:
    """The sockets that are open, by name."""
    return frozenset(target for _number, target in open_descriptors() if target.startswith("socket:"))


def open_sqlite_descriptors() -> Counter[str]:
    """How many descriptors lead to the file of a SQLite database of the project, by alias."""
    files = dict(_sqlite_files())
    found: Counter[str] = Counter()
    for number, target in open_descriptors() if files else ():
        with suppress(OSError):
            if target.startswith("/") and (alias := files.get(_identity(os.fstat(number)))):
                found[alias] += 1
    return found


def _sqlite_files() -> Iterator[tuple[tuple[int, int], str]]:
    for alias, settings in connections.settings.items():
        if _vendor(settings) == "sqlite":
            name = str(settings["NAME"])
            path = unquote(urlsplit(name).path) if name.startswith("file:") else name
            with suppress(OSError):  # in memory, or not made yet
                found = os.stat(path)
                if stat.S_ISREG(found.st_mode):
                    yield _identity(found), alias


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _vendor(settings: dict[str, Any]) -> str:
    vendor: str = load_backend(settings["ENGINE"]).DatabaseWrapper.vendor
    return vendor


def cut_database_sockets() -> None:
    """In a forked child: put a dead socket in the place of each that leads to a database, so that nothing which this
    process does with it, or with what is above it, comes to the server or to the parent, whose socket lives on.

    That is also for connections that no wrapper of Django's knows: those that a module keeps, a thread's, a pool's.
    """
    for number, vendor in _open_database_sockets():
        ours, theirs = socket.socketpair()
        with ours, theirs:
            if vendor == "postgresql":
                theirs.sendall(_fatal_error(NOT_YOURS))  # libpq reads it when it notices that it cannot write
            os.dup2(ours.fileno(), number, inheritable=False)


def _open_database_sockets() -> list[tuple[int, str]]:
    # With a default time-out, to look at a socket would have it no longer block, in the parent as well.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(None)
    try:
        return [*_database_sockets(dict(_database_addresses()))]
    finally:
        socket.setdefaulttimeout(before)


def _fatal_error(message: str) -> bytes:
    """An ErrorResponse of PostgreSQL's protocol, of which nobody thinks that trying again will help."""
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
    """To which address a socket is connected; None if it is to none, or is no stream."""
    with suppress(OSError):
        found = socket.socket(fileno=number)
        try:
            return found.getpeername() if found.type == socket.SOCK_STREAM else None
        finally:
            found.detach()
    return None


def _vendor_of_file(peer: str | bytes) -> str | None:
    path = os.fsdecode(peer)
    return next((vendor for vendor, pattern in SOCKET_FILES.items() if pattern.search(path)), None)


def _database_addresses() -> Iterator[tuple[Any, str]]:
    """Ports and paths of the project's databases, as far as its settings tell, and addresses to which it is connected.

    The name of a host is not looked up, which may take long: its port is enough.
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
            with suppress(Exception):  # whatever a driver raises of a connection that is closed
                yield _peer(wrapper.connection.fileno()), wrapper.vendor
