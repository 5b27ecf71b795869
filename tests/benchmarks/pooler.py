"""Workers of a Dask cluster that save to PostgreSQL directly, and by a PgBouncer that has fewer connections than they.

    python -m tests.benchmarks.pooler

Each object waits, as for the answer of a service, and then saves a row in a transaction of its own. With transaction
pooling a connection of the server is taken from the first query to the COMMIT only.
"""

import os
import statistics
import time
import uuid
from contextlib import nullcontext
from unittest import mock

import django

ROUNDS, WAIT, CHUNKSIZE, CHUNKS_PER_WORKER = 3, 0.5, 5, 3
DIRECT = (16, 32, 64)
WORKERS, SERVER_CONNECTIONS = 64, 20


def waits_and_saves(name, alias):
    from tests.models import Tag

    time.sleep(WAIT)
    Tag(name=name).save(using=alias)


def objects_per_second(workers, executor):
    from poolsave import pooled_operation

    operation = pooled_operation(
        waits_and_saves, executor=executor, workers=workers, chunksize=CHUNKSIZE, databases=("postgres",)
    )
    count = workers * CHUNKSIZE * CHUNKS_PER_WORKER
    began = time.perf_counter()
    report = operation.bind(alias="postgres").map(uuid.uuid4().hex for _ in range(count))
    assert report.succeeded == count, report
    return count / (time.perf_counter() - began)


def main():
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    django.setup()
    from django.core.management import call_command
    from django.db import connections

    from poolsave.executors import DaskExecutor
    from tests.support import dask_cluster, pgbouncer, postgres

    postgres.start_for_this_run()
    call_command("migrate", database="postgres", run_syncdb=True, verbosity=0)
    settings = connections["postgres"].settings_dict
    executor = DaskExecutor(dask_cluster.address_of(2, WORKERS // 2))
    ways = {f"{workers} workers, direct": (workers, nullcontext({})) for workers in DIRECT}
    ways[f"{WORKERS} workers, {SERVER_CONNECTIONS} connections of PgBouncer"] = (
        WORKERS,
        pgbouncer.pooler(settings, size=SERVER_CONNECTIONS),
    )
    for name, (workers, way) in ways.items():
        with way as through, mock.patch.dict(settings, through):
            connections["postgres"].close()
            rates = [objects_per_second(workers, executor) for _ in range(ROUNDS)]
        print(f"{name}: {statistics.median(rates):.0f} objects per second ({min(rates):.0f} to {max(rates):.0f})")


if __name__ == "__main__":
    from tests.benchmarks import pooler  # by the name under which workers find its function

    pooler.main()
