"""Imported by Python's fork server as it starts, so that the workers that it forks have Django up already.

Nothing may escape from here: the fork server would die of it, or swallow it unseen. The caller gets the reason for
which the server must not be used as it is, and starts it anew without Django.
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
from .._db.descriptors import open_sockets, open_sqlite_descriptors
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


def _set_up(note: bytes) -> None:
    python_path, sys.path, sys.argv, preload = pickle.loads(note)
    if python_path is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = python_path
    surroundings: DjangoEnvironment | None
    surroundings, module = pickle.loads(preload)
    if surroundings is not None:
        surroundings.preload()
        load_backends()
    if module is not None and module != "__main__":
        importlib.import_module(module)
    if surroundings is not None:
        connections.close_all()  # of queries that the project makes as it is imported
    remember_generators()


def _what_cannot_be_forked(sockets: frozenset[str]) -> str:
    """What the project has started as it was imported, which must live neither here, beside that of the caller and
    after the end of the run, nor be shared by workers; empty if that is nothing."""
    threads = [one.name for one in threading.enumerate() if one is not threading.current_thread()]
    if threads:
        return f"the project's import or AppConfig.ready() starts threads there ({', '.join(map(repr, threads))})"
    if open_sockets() - sockets:
        return "the project's import or AppConfig.ready() opens sockets there that stay open"
    if settings.configured and (files := open_sqlite_descriptors()):
        return f"the project's import or AppConfig.ready() keeps SQLite databases open there ({', '.join(files)})"
    return ""


_preload()
