"""A Dask cluster in processes of its own, until the process that has started it ends: its event loop is a thread, and
beside threads nothing may be forked.

    python -m tests.support.dask_cluster WORKERS THREADS
"""

import atexit
import os
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path

QUIET = {
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__WORKER__MEMORY__MONITOR_INTERVAL": "5s",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "5s",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s",
}
"""An idle cluster looks at itself 150 times a second otherwise, beside tests that need the processor."""


@cache
def _process(workers, threads):
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.dask_cluster", str(workers), str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if "POOLSAVE_TEST_DASK_LOG" not in os.environ else None,
        text=True,
        env={**os.environ, **QUIET},
    )
    _started.append(process)
    return process


_started = []


@cache
def address_of(workers, threads):
    """Start it at the first call."""
    return _process(workers, threads).stdout.readline().strip()


@atexit.register
def _end():
    for process in _started:
        process.stdin.close()
    for process in _started:
        process.wait(30)
        process.stdout.close()


def belongings():
    """Processes, and the descriptors by which they are spoken to, that these clusters keep, and are no leaks."""
    fds = {pipe.fileno() for process in _started for pipe in (process.stdin, process.stdout)}
    return {process.pid for process in _started}, fds


_true = {}


def pretend(what, value):
    """In a worker: let it say something else of itself, or the truth again."""
    from poolsave._environment.versions import Versions

    true = _true.setdefault("here", Versions.__dict__["here"])
    if what is None:
        Versions.here = true
    else:
        told = Versions.here()._replace(**{what: value})
        Versions.here = classmethod(lambda cls: told)


def keys_of_tasks(dask_scheduler):
    return list(dask_scheduler.tasks)


def run_states():
    from poolsave.executors.dask import worker as _dask_worker

    return len(_dask_worker._runs)


def forget_runs():
    from poolsave.executors.dask import worker as _dask_worker

    _dask_worker._runs.clear()


def transactions_of(begun, go_on):
    """Somebody else's task in a worker: the transaction that it is in, and the one that it is in some time later."""
    import django

    django.setup()
    from django.db import connections, transaction

    def current():
        with connections["postgres"].cursor() as cursor:
            cursor.execute("SELECT pg_current_xact_id()::text")
            return cursor.fetchone()[0]

    with transaction.atomic(using="postgres"):
        before = current()
        Path(begun).touch()
        while not Path(go_on).exists():
            time.sleep(0.01)
        after = current()
    connections["postgres"].close()
    return before, after


def database_of_others():
    import django

    django.setup()
    from django.db import connections

    return connections.settings["postgres"]["NAME"], connections["postgres"].settings_dict["NAME"]


def run_inside(address):
    """A run of its own in the cluster, from one of its tasks."""
    import django

    django.setup()
    from poolsave import InvalidOption, executors
    from tests.support import operations

    try:
        operations.doubles.using(executor=executors.DaskExecutor(address)).map([1])
    except InvalidOption as error:
        return str(error)


def main():
    """Supervise workers: Dask's own nannies give a worker up that ends while it starts."""
    from distributed import LocalCluster

    workers, threads = map(int, sys.argv[1:])
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    with LocalCluster(n_workers=0, dashboard_address=":0") as cluster:
        command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address, "--no-nanny"]
        command += ["--nthreads", str(threads), "--no-dashboard"]
        running = [subprocess.Popen(command) for _ in range(workers)]
        if workers:
            cluster.wait_for_workers(workers)
        print(cluster.scheduler_address, flush=True)
        while not over.wait(0.05):
            running = [one if one.poll() is None else subprocess.Popen(command) for one in running]
        for one in running:
            one.kill()
            one.wait()


if __name__ == "__main__":
    main()
