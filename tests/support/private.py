"""The folder and the servers of this run; under pytest-xdist each worker has its own.

The environment says where they are, so that every process that comes of this one finds them.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")
OWNER = "POOLSAVE_TEST_OWNER"
NAMES = "POOLSAVE_TEST_PRIVATE"


def variable(name: str, make: Callable[[], str]) -> str:
    """What the environment says, or else what `make` gives, which is this worker's own."""
    _forget_those_of_the_controller()
    if name not in os.environ:
        os.environ[name] = make()
        os.environ[NAMES] = f"{os.environ.get(NAMES, '')} {name}"
    return os.environ[name]


def is_private(name: str) -> bool:
    """Whether it was made for this run, and not given by the environment."""
    return name in os.environ.get(NAMES, "").split()


def new_folder() -> str:
    """A folder that is gone when this process ends."""
    folder = tempfile.mkdtemp(prefix="poolsave-")  # short, since the path of a socket must stay under 107 bytes
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _forget_those_of_the_controller() -> None:
    # The process that hands out the tests imports the settings as well, and its workers inherit its environment.
    if os.environ.get(OWNER, WORKER) != WORKER:
        for name in os.environ.pop(NAMES, "").split():
            del os.environ[name]
    os.environ[OWNER] = WORKER
