"""Messages from the event loop of a Dask client (`cluster.py`) to the thread that drives a run (`executor.py`)."""

from __future__ import annotations

import importlib
from enum import Enum
from typing import Any, NamedTuple

from ...errors import InvalidOption
from .worker import TaskAnswer


def import_dask(name: str) -> Any:
    """Import Dask on first use: it is an extra, and slow to import.

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
    """A worker was admitted. It can be sent as many tasks at a time as it has threads."""

    address: str
    threads: int


class WorkerLeft(NamedTuple):
    """An admitted worker has left. A `TaskEnded` for each of its tasks came before."""

    address: str


class SetupRefused(NamedTuple):
    """A worker could not be set up, or the cluster has none; `error` says why."""

    error: BaseException


class SchedulerLost(NamedTuple):
    """The connection to the scheduler is lost; `error` says why."""

    error: BaseException


class LostTask(Enum):
    """What is known of a task whose worker has left."""

    UNTOUCHED = "it was not sent, since the worker had left before"
    UNKNOWN = "its progress is unknown"


class TaskEnded(NamedTuple):
    """A task has ended."""

    address: str
    task: int
    result: TaskAnswer | LostTask | BaseException
    """The worker's answer; what is known without an answer; or an error of Dask."""
