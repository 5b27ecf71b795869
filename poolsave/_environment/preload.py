"""Python's fork server imports this as it starts, so that Django is set up in the workers that it forks.

No exception may leave this module: the fork server would end, or swallow it. If the server must not be used, the caller
gets the reason, and starts it again without Django.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import threading
from multiprocessing.connection import Client

from django.conf import settings
from django.db import connections

from .._db.connections import load_backends
from .._db.fork_safety import open_sockets, open_sqlite_descriptors
from ..executors.processes.start_methods import PRELOAD_ADDRESS
from .django_setup import DjangoEnvironment
from .random_generators import remember_generators


def _preload() -> None:
    address = os.environ.pop(PRELOAD_ADDRESS, None)
    if address is None:
        return
    with Client(address, "AF_UNIX") as caller:
        sockets = open_sockets()
        try:
            _set_up(caller.recv_bytes())
            reason = _what_cannot_be_forked(sockets)
        except (Exception, SystemExit) as error:
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        caller.send_bytes(reason.encode())


def _set_up(message: bytes) -> None:
    python_path, sys.path, sys.argv, preload = pickle.loads(message)
    if python_path is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = python_path
    environment: DjangoEnvironment | None
    environment, module = pickle.loads(preload)
    if environment is not None:
        environment.preload()
        load_backends()
    if module is not None and module != "__main__":
        importlib.import_module(module)
    if environment is not None:
        connections.close_all()  # opened by queries that the project makes while it is imported
    remember_generators()


def _what_cannot_be_forked(sockets: frozenset[str]) -> str:
    """Name what the project's import has started that must not run here; empty if there is nothing.

    It would run beside the caller's own and outlast the run, and workers would share it.
    """
    threads = [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]
    if threads:
        return f"the project's import or AppConfig.ready() starts threads there ({', '.join(map(repr, threads))})"
    if open_sockets() - sockets:
        return "the project's import or AppConfig.ready() opens sockets there that stay open"
    if settings.configured and (files := open_sqlite_descriptors()):
        return f"the project's import or AppConfig.ready() keeps SQLite databases open there ({', '.join(files)})"
    return ""


_preload()
