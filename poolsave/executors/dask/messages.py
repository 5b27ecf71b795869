"""Messages from the event loop of a Dask client (`cluster.py`) to the thread that drives a run (`executor.py`)."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

from ...errors import InvalidOption
from .worker import BundleAnswer


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
    """A worker was admitted. It can be sent as many bundles at a time as it has threads."""

    address: str
    threads: int


class WorkerLeft(NamedTuple):
    """An admitted worker has left. A `BundleEnded` for each of its bundles came before."""

    address: str


class SetupRefused(NamedTuple):
    """A worker could not be set up, or the cluster has none; `error` says why."""

    error: BaseException


class SchedulerLost(NamedTuple):
    """The connection to the scheduler is lost; `error` says why."""

    error: BaseException


class LostBundle(Enum):
    """What is known of a bundle whose worker has left."""

    UNTOUCHED = "it was not sent, since the worker had left before"
    UNKNOWN = "its progress is unknown"


class Bundle(NamedTuple):
    """Tasks that go to a worker as one task of Dask."""

    number: int
    payloads: Sequence[bytes]


class BundleEnded(NamedTuple):
    """A bundle has ended."""

    address: str
    bundle: int
    result: BundleAnswer | LostBundle | BaseException
    """The worker's answer; what is known without an answer; or an error of Dask."""
