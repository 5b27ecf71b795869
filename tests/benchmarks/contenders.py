"""The ways in which a function can be called for many objects. Each gets what its authors would advise.

All that fork close the connections first, or their workers would talk on each other's sockets; that is in the clock,
since whoever uses them must do it. Workers are as many as this process has CPUs unless a measurement says otherwise.
"""

import collections
import concurrent.futures
import itertools
import multiprocessing
import os
from contextlib import suppress

from django.db import IntegrityError, connections, transaction
from tqdm import tqdm

from poolsave import InvalidOption, pooled_operation

FORK = multiprocessing.get_context("fork")


class NotAvailable(Exception):
    """This contender is not there; its text says why."""


def installed(name):
    try:
        return __import__(name)
    except ImportError:
        raise NotAvailable("not installed") from None


def plain_loop(function, objects):
    for one in objects:
        function(one)


def loop_past_errors(function, objects):
    for one in objects:
        with suppress(IntegrityError), transaction.atomic():
            function(one)


def loop_with_transactions(function, objects):
    for one in objects:
        with transaction.atomic():
            function(one)


def article(function, objects):
    """After "Bulk operations in Django with process pool" (rednafi.com, 2022), which describes its code: connections
    closed first, four forked workers, a future per object, and a bar over as_completed."""
    connections.close_all()
    with concurrent.futures.ProcessPoolExecutor(max_workers=4, mp_context=FORK) as executor:
        futures = [executor.submit(function, one) for one in objects]
        with open(os.devnull, "w") as nowhere:
            for future in tqdm(concurrent.futures.as_completed(futures), total=len(futures), file=nowhere):
                future.result()


def thread_pool(function, objects, *, workers):
    """Its threads stay for the whole run, so that each has one connection."""
    with concurrent.futures.ThreadPoolExecutor(workers) as executor:
        list(executor.map(function, objects))


def process_pool_map(function, objects, *, workers, chunksize=1):
    connections.close_all()
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=FORK, initializer=start_afresh) as executor:
        list(executor.map(function, objects, chunksize=chunksize))


def pool_imap_unordered(function, objects, *, workers, chunksize=1):
    connections.close_all()
    with FORK.Pool(workers, initializer=start_afresh) as pool:
        list(pool.imap_unordered(function, objects, chunksize=chunksize))


def pool_map(function, objects, *, workers, chunksize=None):
    connections.close_all()
    with FORK.Pool(workers, initializer=start_afresh) as pool:
        pool.map(function, objects, chunksize=chunksize)


def process_pool_drained(function, objects, *, workers, chunksize):
    """As above, with results that are not kept."""
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=FORK) as executor:
        collections.deque(executor.map(function, objects, chunksize=chunksize), maxlen=0)


def pool_imap_drained(function, objects, *, workers, chunksize):
    with FORK.Pool(workers) as pool:
        collections.deque(pool.imap_unordered(function, objects, chunksize=chunksize), maxlen=0)


def joblib_parallel(function, objects, *, workers, chunksize="auto", backend="loky"):
    """loky's processes are fresh ones that import Django; those of `multiprocessing` are forked."""
    joblib = installed("joblib")
    connections.close_all()
    calls = (joblib.delayed(function)(one) for one in objects)
    joblib.Parallel(n_jobs=workers, backend=backend, batch_size=chunksize)(calls)
    if backend == "loky":  # which would keep its processes for a next call; the others have ended theirs
        joblib.externals.loky.get_reusable_executor().shutdown()


def mpire_map(function, objects, *, workers, chunksize=None):
    mpire = installed("mpire")
    connections.close_all()
    with mpire.WorkerPool(n_jobs=workers, start_method="fork") as pool:
        pool.map_unordered(function, objects, chunk_size=chunksize, worker_init=start_afresh)


def pebble_map(function, objects, *, workers, chunksize=1):
    pebble = installed("pebble")
    connections.close_all()
    with pebble.ProcessPool(max_workers=workers, context=FORK, initializer=start_afresh) as pool:
        list(pool.map(function, objects, chunksize=chunksize).result())


def hand_written(function, objects, *, workers, chunksize):
    """The best that one can write by hand who needs neither reports nor that a failure spares its neighbours: chunks
    in one transaction each, without savepoints."""
    connections.close_all()
    with FORK.Pool(workers, initializer=start_afresh) as pool:
        list(pool.imap_unordered(InOneTransaction(function), chunks(objects, chunksize)))


class InOneTransaction:
    def __init__(self, function):
        self.function = function

    def __call__(self, objects):
        with transaction.atomic():
            return [self.function(one) for one in objects]


def with_poolsave(function, objects, **options):
    operation(function, **options).map(objects).raise_if_failed()


def with_failures(function, objects, **options):
    operation(function, **options).map(objects)


def operation(function, **options):
    try:
        return pooled_operation(progress=False, **options)(function)
    except InvalidOption:
        raise NotAvailable("not available yet") from None


def start_afresh():
    """In a forked worker: connections of its own."""
    connections.close_all()


def chunks(objects, size):
    iterator = iter(objects)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
