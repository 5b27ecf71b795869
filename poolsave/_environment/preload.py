"""Imported by Python's fork server as it starts, so that the workers that it forks have Django up already.

Nothing may escape from here: the fork server would die of it, or swallow it unseen. A worker sets up for itself
whatever is still missing, and raises what goes wrong there.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import sys

from .._db.connections import load_backends
from ..executors.processes.start_methods import PRELOAD_NOTE
from .django_setup import DjangoEnvironment


def _preload() -> None:
    path = os.environ.pop(PRELOAD_NOTE, None)
    if path is None:
        return
    with open(path, "rb") as file:
        python_path, sys.path, sys.argv, preload = pickle.load(file)
    os.unlink(path)
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


try:
    _preload()
except (Exception, SystemExit):  # told here, and raised by the first worker, which does the same again
    logging.getLogger("poolsave").exception("the fork server could not set up Django; its workers will try again")
