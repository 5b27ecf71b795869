"""Executors by name, open to other packages through the entry-point group `poolsave.executors`."""

from __future__ import annotations

import concurrent.futures
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ..errors import InvalidOption
from .dask.executor import DaskExecutor
from .futures import FuturesExecutor, ProcessPoolExecutor, ThreadFuturesExecutor
from .processes.executor import ProcessExecutor
from .protocol import Executor
from .serial import SerialExecutor
from .threads import ThreadExecutor

__all__ = ["create", "is_known", "register"]

GROUP = "poolsave.executors"
_factories: dict[str, Callable[..., Executor]] = {
    "dask": DaskExecutor.from_settings,
    "process": ProcessPoolExecutor if sys.platform == "win32" else ProcessExecutor,
    "process-pool": ProcessPoolExecutor,
    "serial": SerialExecutor,
    "thread": ThreadExecutor,
}


def register(name: str, factory: Callable[..., Executor]) -> None:
    """Make `executor=name` call `factory(start_method=...)` for a fresh executor per run; a later call wins."""
    _factories[name] = factory


def is_known(name: str) -> bool:
    """Whether `executor=` takes this name. Reads the slow list of entry points only if it has to."""
    return name in _factories or name in _published()


def create(wish: str | Executor | concurrent.futures.Executor, **settings: Any) -> Executor:
    """Return the executor for the option `executor`.

    Raises:
        InvalidOption: saying why there can be none.
    """
    if type(wish).__module__ == "distributed.cfexecutor":
        raise InvalidOption(
            "executor", wish, "Dask would run futures twice: use poolsave.executors.DaskExecutor(client) instead"
        )
    if isinstance(wish, concurrent.futures.Executor):
        kind = ThreadFuturesExecutor if isinstance(wish, concurrent.futures.ThreadPoolExecutor) else FuturesExecutor
        return kind(wish)
    if not isinstance(wish, str):
        return wish
    factory = _factories[wish] if wish in _factories else _published()[wish].load()
    executor: Executor = factory(**settings)
    return executor


@cache
def _published() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
