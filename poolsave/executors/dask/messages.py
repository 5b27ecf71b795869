"""What the event loop of a Dask client finds out about a run, for the thread that runs it."""

from __future__ import annotations

import importlib
from enum import Enum
from typing import Any, NamedTuple

from ...errors import InvalidOption
from .worker import TaskAnswer


def import_dask(name: str) -> Any:
    """Import Dask when it is wanted: it is an extra, and slow to import.

    Raises:
        InvalidOption: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in ("dask", "distributed"):
            raise
        raise InvalidOption("executor", "dask", "install it by: pip install 'poolsave[dask]'") from error


class WorkerJoined(NamedTuple):
    """A worker can be sent tasks, as many at a time as it has threads."""

    address: str
    threads: int


class WorkerLeft(NamedTuple):
    """A worker is gone. What has become of its tasks has been told before."""

    address: str


class SetupRefused(NamedTuple):
    """A worker could not be set up, or none can be had, and why."""

    error: BaseException


class SchedulerLost(NamedTuple):
    """The scheduler does not answer any more, and why."""

    error: BaseException


class LostTask(Enum):
    """What has become of a task whose worker has left."""

    UNTOUCHED = "it was not sent, since the worker had left before"
    UNKNOWN = "nobody knows how far it came"


class TaskEnded(NamedTuple):
    """A task is over."""

    address: str
    task: int
    result: TaskAnswer | LostTask | BaseException
    """What the worker answered; what became of it without an answer; or an error of Dask's."""
