"""Which way to start worker processes, and a fork server that has everything imported."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any, Self

from ..._db.redacted import dumps
from ..green_threads import check_start_method, patched_by

PRELOAD_MODULE = "poolsave._environment.preload"
PRELOAD_ADDRESS = "POOLSAVE_PRELOAD"
"""The environment variable that names the socket from which the preloaded module gets what to set up."""
POLL_INTERVAL = 0.05
"""Seconds between looks at whether a fork server that starts is still alive."""
_starting = threading.Lock()
"""Held by the thread that starts the fork server: another one would wait for the answer that this one gets."""
_without_django: dict[int | None, str] = {}
"""Reasons by the ids of fork servers."""
SERVER_DIED = "it ended while it was being set up"


def choose_start_method(wish: str | None, *, fork_is_possible: bool = True) -> str:
    """Give `wish`, or fork where it is safe (Linux, one thread alive), else forkserver, else spawn.

    In place of a fork server that has imported what the caller has reloaded since, it is spawn.

    Raises:
        InvalidOption: if `wish` would fork beside greenlets; without one it is spawn there.
    """
    check_start_method(wish)
    method = wish or _safest(fork_is_possible=fork_is_possible)
    return "spawn" if method == "forkserver" and _is_outdated() else method


def _safest(*, fork_is_possible: bool) -> str:
    if patched_by() is not None:
        return "spawn"
    if fork_is_possible and sys.platform == "linux" and is_alone():
        return "fork"
    methods = multiprocessing.get_all_start_methods()
    return "forkserver" if "forkserver" in methods else "spawn"


def is_alone() -> bool:
    """Whether this is the only thread, also of those that Python did not start, which can hold locks just as well."""
    # A thread that has been joined may need a moment to leave the kernel's list.
    for _ in range(20):
        if threading.active_count() > 1:
            return False
        if native_threads() == 1:
            return True
        time.sleep(0.001)
    return False


def native_threads() -> int:
    """How many threads the kernel knows of in this process."""
    return len(os.listdir("/proc/self/task"))


_specs_at_start: dict[str, Any] = {}
"""By the name of a module, how it was loaded in the caller when the fork server was started."""


def _is_outdated() -> bool:
    server: Any = forkserver._forkserver
    if server._forkserver_pid is None or not _specs_at_start:
        return False
    now = _specs()
    return any(now.get(name, spec) is not spec for name, spec in _specs_at_start.items())


def _specs() -> dict[str, Any]:
    """To reload a module gives it a new specification, also by IPython's autoreload."""
    return {
        # Asked like this, a lazy module does not load itself.
        name: object.__getattribute__(module, "__dict__").get("__spec__")
        for name, module in list(sys.modules.items())
        if issubclass(type(module), ModuleType)
    }


def ensure_forkserver(preload: bytes) -> str | None:
    """Start Python's fork server with Django set up in it, unless one is running already.

    If that cannot be kept there, give the reason: the server then starts anew without Django, and each worker sets it
    up for itself, as it does in a server that somebody else has started.
    """
    with _starting:
        return _ensure_forkserver(preload)


def _ensure_forkserver(preload: bytes) -> str | None:
    server: Any = forkserver._forkserver  # there is no other way to ask it
    # Without __main__, which the preloaded module imports: CPython 3.14 does so outside of any `try`, and the server
    # dies of a script without a guard (gh-126631).
    known = [name for name in server._preload_modules if name not in ("__main__", PRELOAD_MODULE)]
    forkserver.set_forkserver_preload([*known, PRELOAD_MODULE])
    with _PreloadSocket() as channel:
        # The server ignores the parent's sys.path in Python before 3.12.4 and 3.13.1 (CPython issue 117378).
        with _environment(PYTHONPATH=os.pathsep.join(sys.path), **{PRELOAD_ADDRESS: channel.address}):
            before = server._forkserver_pid
            forkserver.ensure_running()
        if server._forkserver_pid == before:
            return None
        _specs_at_start.clear()
        _specs_at_start.update(_specs())
        note = dumps((os.environ.get("PYTHONPATH"), sys.path, sys.argv, preload))
        reason = channel.exchange(note, server._forkserver_pid)
    if reason:
        _end(server._forkserver_pid)
        forkserver.ensure_running()
        _without_django[server._forkserver_pid] = reason
    return reason or None


def why_without_django() -> str:
    """Why the fork server that runs has no Django set up; empty if it has, or nobody knows."""
    server: Any = forkserver._forkserver
    return _without_django.get(server._forkserver_pid, "")


def _end(server: int) -> None:
    """Kill the fork server, with what the project has started in it, and leave it for multiprocessing to reap."""
    os.kill(server, signal.SIGKILL)
    os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)


class _PreloadSocket:
    """Where a fork server that starts gets what to set up, and says what came of it.

    A socket, since passwords are in what it gets: they must not stay behind in a file if the server does not start.
    """

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            # Only this user can enter the folder. Its name is short, as the address of a socket has to be.
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="poolsave-"))
            self.address = os.path.join(folder, "preload")
            self._listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            self._listener.bind(self.address)
            self._listener.listen()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def exchange(self, note: bytes, server: int) -> str:
        """Send the note and wait for the answer: why nothing may be preloaded, or nothing if all is well."""
        try:
            while not select.select([self._listener], [], [], POLL_INTERVAL)[0]:
                if os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT | os.WNOHANG):
                    return SERVER_DIED
            with Connection(self._listener.accept()[0].detach()) as connection:
                connection.send_bytes(note)
                return connection.recv_bytes().decode()
        except (EOFError, ConnectionError):
            return SERVER_DIED


@contextmanager
def _environment(**changes: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
