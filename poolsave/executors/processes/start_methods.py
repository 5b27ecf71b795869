"""Which way to start worker processes, and a fork server that has everything imported."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from typing import Any

PRELOAD_MODULE = "poolsave._environment.preload"
PRELOAD_NOTE = "POOLSAVE_PRELOAD"
"""The environment variable that tells the preloaded module where its note lies."""


def choose_start_method(wish: str | None, *, fork_is_possible: bool = True) -> str:
    """Give `wish`, or fork where it is safe (Linux, one thread alive), else forkserver, else spawn."""
    if wish is not None:
        return wish
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
        if len(os.listdir("/proc/self/task")) == 1:
            return True
        time.sleep(0.001)
    return False


def ensure_forkserver(preload: bytes) -> None:
    """Start Python's fork server with the module imported that sets everything up, unless one is running already.

    A server that somebody else started is used as it is: workers then set themselves up, which is only slower.
    The server ignores the parent's sys.path in Python before 3.12.4 and 3.13.1 (CPython issue 117378), so it is
    handed over by PYTHONPATH, and everything else by a note in a file, since an environment variable is too short.
    """
    server: Any = forkserver._forkserver  # there is no other way to ask it
    known: list[str] = list(server._preload_modules)
    if PRELOAD_MODULE not in known:
        forkserver.set_forkserver_preload([*known, PRELOAD_MODULE])
    handle, path = tempfile.mkstemp(prefix="poolsave-")
    with open(handle, "wb") as file:
        pickle.dump((os.environ.get("PYTHONPATH"), sys.path, sys.argv, preload), file)
    # Reading and removing the note is the server's; if one is running already, nobody else will.
    with _environment(PYTHONPATH=os.pathsep.join(sys.path), **{PRELOAD_NOTE: path}):
        before = server._forkserver_pid
        forkserver.ensure_running()
        if server._forkserver_pid == before:
            os.unlink(path)


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
