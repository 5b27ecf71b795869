"""Every executor that the tests run on: how to make it, and the class whose attributes say what to expect of it."""

import concurrent.futures
import multiprocessing
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import loky

from poolsave import executors

START_METHODS = ["fork", "forkserver", "spawn"]
POOLS: dict[str, dict[str, Any]] = {
    "serial": {"executor": "serial"},
    "thread": {"executor": "thread"},
    "fork": {"executor": "process", "start_method": "fork"},
    "forkserver": {"executor": "process", "start_method": "forkserver"},
    "spawn": {"executor": "process", "start_method": "spawn"},
    "process-pool": {"executor": "process-pool"},
}
FOREIGN: dict[str, Callable[..., concurrent.futures.Executor]] = {
    "ThreadPoolExecutor": partial(concurrent.futures.ThreadPoolExecutor, 2),
    "ProcessPoolExecutor": partial(
        concurrent.futures.ProcessPoolExecutor, 2, mp_context=multiprocessing.get_context("spawn")
    ),
    "loky": partial(loky.ProcessPoolExecutor, 2),
}


class Pool(NamedTuple):
    """One executor."""

    promises: type[executors.Executor]
    opened: Callable[[], AbstractContextManager[dict[str, Any]]]
    """Gives the options for `using()`; what was made for them is gone when it is left."""


def _own(name: str, promises: type[executors.Executor]) -> Pool:
    return Pool(promises, partial(nullcontext, POOLS[name]))


@contextmanager
def foreign(name, **more):
    """An executor that knows nothing of poolsave."""
    with FOREIGN[name](**more) as executor:
        yield {"executor": executor}
    # Of a pool that broke, loky leaves processes that nobody has asked for their end.
    multiprocessing.active_children()


def _foreign(name: str, promises: type[executors.Executor]) -> Pool:
    return Pool(promises, partial(foreign, name))


EXECUTORS = {
    "serial": _own("serial", executors.SerialExecutor),
    "thread": _own("thread", executors.ThreadExecutor),
    **{method: _own(method, executors.ProcessExecutor) for method in START_METHODS},
    "process-pool": _own("process-pool", executors.ProcessPoolExecutor),
    "ThreadPoolExecutor": _foreign("ThreadPoolExecutor", executors.ThreadFuturesExecutor),
    "ProcessPoolExecutor": _foreign("ProcessPoolExecutor", executors.FuturesExecutor),
    "loky": _foreign("loky", executors.FuturesExecutor),
}


def those(condition: Callable[[type[executors.Executor]], bool]) -> list[str]:
    """The names of the executors whose promises fulfil the condition."""
    return [name for name, pool in EXECUTORS.items() if condition(pool.promises)]
