"""How many chunks one caller hands out in a second, and so how many workers it can keep busy.

    python -m tests.benchmarks.scale

Chunks of one object whose function does nothing, on this machine, so that the figures hold the workers' own share, too:
in 2 processes, and in 16 threads of 2 Dask workers, since a chunk that goes by a scheduler is long on its way. Then the
largest memory of the caller over a long run.
"""

import os
import resource
import statistics
import time

import django

ROUNDS = 3
CHUNKS = {"process": 20_000, "dask": 1_000}
OBJECTS = 2_000_000


def chunks_per_second(operation, count):
    began = time.perf_counter()
    assert operation.map(range(count)).succeeded == count
    return count / (time.perf_counter() - began)


def main():
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    django.setup()
    from distributed import LocalCluster

    from poolsave import executors
    from tests.support import operations

    one_by_one = operations.doubles.using(workers=2, chunksize=1, keep="failures")
    with LocalCluster(n_workers=2, threads_per_worker=8, dashboard_address=":0") as cluster:
        found = {
            "process": one_by_one.using(start_method="forkserver"),
            "dask": one_by_one.using(executor=executors.DaskExecutor(cluster), workers=16),
        }
        for name, operation in found.items():
            chunks_per_second(operation, CHUNKS[name] // 10)
            rates = [chunks_per_second(operation, CHUNKS[name]) for _ in range(ROUNDS)]
            rate = statistics.median(rates)
            print(f"{name}: {rate:.0f} chunks per second ({min(rates):.0f} to {max(rates):.0f})")
            for milliseconds in (1, 10, 100):
                for size in (1, 100, 1000):
                    print(
                        f"  {milliseconds:3} ms, chunks of {size:4}: {rate * size * milliseconds / 1000:10.0f} workers"
                    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    operations.doubles.using(workers=2, chunksize=1000, keep="failures").map(range(OBJECTS))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{OBJECTS} objects: the caller's memory grew from {before / 1024:.0f} to {after / 1024:.0f} MB at most")


if __name__ == "__main__":
    main()
