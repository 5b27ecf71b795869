"""Every executor that the tests run on: how to make it, and the class whose attributes say what to expect of it."""

import concurrent.futures
import multiprocessing
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import dask
import loky

from poolsave import executors
from tests.support import dask_cluster

# Or messages of 10 MB would start a thread in this process that stays, beside which nothing may be forked.
dask.config.set({"distributed.comm.offload": False})

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
    "ThreadPoolExecutor": partial(concurrent.futures.ThreadPoolExecutor, max_workers=2),
    "ProcessPoolExecutor": partial(
        concurrent.futures.ProcessPoolExecutor, max_workers=2, mp_context=multiprocessing.get_context("spawn")
    ),
    "loky": partial(loky.ProcessPoolExecutor, max_workers=2),
}


class Pool(NamedTuple):
    """One executor."""

    promises: type[executors.Executor]
    opened: Callable[[], AbstractContextManager[dict[str, Any]]]
    """Gives the options for `using()`; what was made for them is gone when it is left."""
    in_script: Callable[[], AbstractContextManager[dict[str, Any]]] | None = None
    """The same, if it has to be made in another way where the functions are in a script."""


def _own(name: str, promises: type[executors.Executor]) -> Pool:
    return Pool(promises, partial(nullcontext, POOLS[name]))


@contextmanager
def foreign(name, **more):
    """An executor that knows nothing of poolsave."""
    with FOREIGN[name](**more) as executor:
        yield {"executor": executor}
    # A pool of loky's that broke leaves processes behind.
    multiprocessing.active_children()


def _foreign(name: str, promises: type[executors.Executor]) -> Pool:
    return Pool(promises, partial(foreign, name))


def _dask(workers: int, threads: int) -> Pool:
    return Pool(executors.DaskExecutor, partial(dask_pool, workers, threads), partial(local_dask, workers, threads))


@contextmanager
def dask_pool(workers, threads):
    """A cluster that all tests share."""
    with dask.config.set({"scheduler-address": dask_cluster.address_of(workers, threads)}):
        yield {"executor": "dask"}


@contextmanager
def local_dask(workers, threads):
    """A cluster whose workers import the script that starts it."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=workers, threads_per_worker=threads, dashboard_address=":0") as cluster:
        with dask.config.set({"scheduler-address": cluster.scheduler_address}):
            yield {"executor": "dask"}


def goes_on(executor: executors.Executor) -> bool:
    """Whether a run goes on with other workers when one has died."""
    return executor.blames_exactly or isinstance(executor, executors.DaskExecutor)


EXECUTORS = {
    "serial": _own("serial", executors.SerialExecutor),
    "thread": _own("thread", executors.ThreadExecutor),
    **{method: _own(method, executors.ProcessExecutor) for method in START_METHODS},
    "process-pool": _own("process-pool", executors.ProcessPoolExecutor),
    "ThreadPoolExecutor": _foreign("ThreadPoolExecutor", executors.ThreadFuturesExecutor),
    "ProcessPoolExecutor": _foreign("ProcessPoolExecutor", executors.FuturesExecutor),
    "loky": _foreign("loky", executors.FuturesExecutor),
    "dask": _dask(2, 1),
    "dask-threads": _dask(1, 2),
}


def those(condition: Callable[[type[executors.Executor]], bool]) -> list[str]:
    """The names of the executors whose promises fulfil the condition."""
    return [name for name, pool in EXECUTORS.items() if condition(pool.promises)]
