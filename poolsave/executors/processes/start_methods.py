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

from ..._runtime.redacted import dumps
from ..._runtime.script import is_started_again_by_import, missing_script
from ...errors import InvalidOperation, InvalidOption

PRELOAD_MODULE = "poolsave._environment.preload"
PRELOAD_ADDRESS = "POOLSAVE_PRELOAD"
"""The environment variable that names the socket from which the preloaded module gets what to set up."""
POLL_INTERVAL = 0.05
"""Polling interval in seconds for the life of a fork server that is being started."""
PATCHED = ("threading", "thread", "select", "socket", "os")
"""Modules of the standard library. A process counts as patched if one of them is."""
_start_lock = threading.Lock()
"""Held while a thread starts the fork server. A second thread would wait for the answer that the first one gets."""
_preload_failures: dict[int | None, str] = {}
"""Why Django is not set up in a fork server, by the process id of the server."""
SERVER_DIED = "it ended while it was being set up"


def patched_by() -> str | None:
    """The name of the library that has patched this process, or None. It imports neither library."""
    gevent: Any = sys.modules.get("gevent.monkey")
    if gevent is not None and any(map(gevent.is_module_patched, PATCHED)):
        return "gevent"
    eventlet: Any = sys.modules.get("eventlet.patcher")
    if eventlet is not None and any(map(eventlet.is_monkey_patched, PATCHED)):
        return "eventlet"
    return None


def check_start_method(start_method: str | None) -> None:
    """Refuse to fork beside greenlets, which gevent and eventlet put in the place of threads.

    A fork copies all greenlets and the loop with its descriptors. The copied greenlets go on running in each worker,
    and the loop of either side aborts when the other one closes a descriptor. A spawned process has neither.

    Raises:
        InvalidOption: naming the library and the alternatives.
    """
    library = patched_by() if start_method in ("fork", "forkserver") else None
    if library is not None:
        raise InvalidOption(
            "start_method",
            start_method,
            f"{library} has patched this process, and its greenlets would go on in every fork: "
            'use start_method="spawn" (the default here), or executor="thread"',
        )


def choose_start_method(option: str | None, *, fork_is_possible: bool = True) -> str:
    """Give `option`. Without it: fork where that is safe (Linux, one thread), else forkserver, else spawn.

    If the caller has reloaded a module that the fork server has imported, spawn takes the place of forkserver.

    Raises:
        InvalidOption: if `option` would fork beside greenlets. Without `option` the method is spawn there.
    """
    check_start_method(option)
    method = option or _safest_method(fork_is_possible=fork_is_possible)
    return "spawn" if method == "forkserver" and _has_outdated_modules() else method


def _safest_method(*, fork_is_possible: bool) -> str:
    if patched_by() is not None:
        return "spawn"
    if fork_is_possible and sys.platform == "linux" and is_alone():
        return "fork"
    methods = multiprocessing.get_all_start_methods()
    return "forkserver" if "forkserver" in methods else "spawn"


def check_script_can_be_imported() -> None:
    """Refuse what ends each worker that is not forked: multiprocessing imports the script there first of all.

    Raises:
        InvalidOperation: naming the script.
    """
    if (path := missing_script()) is not None:
        raise InvalidOperation(
            f"worker processes that are not forked import the script, and there is no file {path!r}: save the script "
            'as a file, or use executor="thread" or start_method="fork" (the default only while no other thread is '
            "alive)"
        )
    if is_started_again_by_import():
        raise InvalidOperation(
            "worker processes that are not forked import the script, and would start the run again there, which "
            'stands at its top level: start it from under if __name__ == "__main__":, or use executor="thread" or '
            'start_method="fork" (the default only while no other thread is alive)'
        )


def is_alone() -> bool:
    """Whether this is the only thread. Threads that Python did not start count as well: they can hold locks too."""
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


_File = tuple[str, int, int]
"""The path of a module's file, its time of change in nanoseconds, and its size in bytes."""
_specs_at_start: dict[str, tuple[Any, _File | None]] = {}
"""The specifications of the caller's modules when the fork server was started, and their files, by module name."""


def _has_outdated_modules() -> bool:
    """Whether a module is another one than when the fork server was started.

    One that was reloaded from the same file is none: Django's `migrate` reloads each package of migrations.
    """
    server: Any = forkserver._forkserver
    if server._forkserver_pid is None or not _specs_at_start:
        return False
    now = _specs()
    return any(
        (spec := now.get(name, before)) is not before and (file is None or _file_of(spec) != file)
        for name, (before, file) in _specs_at_start.items()
    )


def _specs() -> dict[str, Any]:
    """The present specification of each module. A reload makes a new one, and so does IPython's autoreload."""
    return {
        # object.__getattribute__ keeps a lazy module from loading itself.
        name: object.__getattribute__(module, "__dict__").get("__spec__")
        for name, module in list(sys.modules.items())
        if issubclass(type(module), ModuleType)
    }


def _file_of(spec: Any) -> _File | None:
    """The file of a module as it is now. None if there is none."""
    path = getattr(spec, "origin", None)
    if not isinstance(path, str):
        return None
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return path, found.st_mtime_ns, found.st_size


def ensure_forkserver(preload: bytes) -> str | None:
    """Start Python's fork server with Django set up in it, unless one is running already.

    If Django cannot be kept there, the server starts anew without it, and the reason is returned. Each worker then sets
    Django up for itself, as under a server that was started elsewhere.
    """
    with _start_lock:
        return _ensure_forkserver(preload)


def _ensure_forkserver(preload: bytes) -> str | None:
    server: Any = forkserver._forkserver  # private, but multiprocessing offers no public access
    # Without __main__, which the preloaded module imports: CPython 3.14 does so outside of any `try`, and the server
    # dies of a script without a guard (gh-126631).
    preloaded = [name for name in server._preload_modules if name not in ("__main__", PRELOAD_MODULE)]
    forkserver.set_forkserver_preload([*preloaded, PRELOAD_MODULE])
    with _PreloadSocket() as channel:
        # The server ignores the parent's sys.path in Python before 3.12.4 and 3.13.1 (CPython issue 117378).
        with _environ(PYTHONPATH=os.pathsep.join(sys.path), **{PRELOAD_ADDRESS: channel.address}):
            old_pid = server._forkserver_pid
            forkserver.ensure_running()
        if server._forkserver_pid == old_pid:
            return None
        _specs_at_start.clear()
        _specs_at_start.update({name: (spec, _file_of(spec)) for name, spec in _specs().items()})
        request = dumps((os.environ.get("PYTHONPATH"), sys.path, sys.argv, preload))
        reason = channel.exchange(request, server._forkserver_pid)
    if reason:
        _kill_server(server._forkserver_pid)
        # The next one finds no address in its environment, and so preloads nothing.
        forkserver.ensure_running()
        _preload_failures[server._forkserver_pid] = reason
    return reason or None


def why_not_preloaded() -> str:
    """Why the present fork server has no Django set up; empty if it has, or if the reason is unknown."""
    server: Any = forkserver._forkserver
    return _preload_failures.get(server._forkserver_pid, "")


def _kill_server(server: int) -> None:
    """Kill the fork server and what the project has started in it. multiprocessing reaps it."""
    os.kill(server, signal.SIGKILL)
    os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)


class _PreloadSocket:
    """Sends a new fork server what to set up, and receives the result.

    It is a socket because the message holds passwords, which a file would keep if the server did not start.
    """

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            # Only this user can enter the folder. Its name is short because the address of a socket is limited.
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="poolsave-"))
            self.address = os.path.join(folder, "preload")
            self._listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            self._listener.bind(self.address)
            self._listener.listen()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def exchange(self, request: bytes, server: int) -> str:
        """Send the request. Returns why nothing may be preloaded, or an empty string."""
        try:
            while not select.select([self._listener], [], [], POLL_INTERVAL)[0]:
                if os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT | os.WNOHANG):
                    return SERVER_DIED
            with Connection(self._listener.accept()[0].detach()) as connection:
                connection.send_bytes(request)
                return connection.recv_bytes().decode()
        except (EOFError, ConnectionError):
            return SERVER_DIED


@contextmanager
def _environ(**changes: str) -> Iterator[None]:
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
