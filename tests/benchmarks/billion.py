"""A billion rows on up to 1,000 workers, simulated with measured costs; and the simulation beside real runs.

    python -m tests.benchmarks.billion            # prints the tables of docs/explanation/scale.md, draws its picture
    python -m tests.benchmarks.billion --check    # the real runs only

The real runs wait more than they compute, so that the two CPUs here are not what is measured.
"""

import argparse
import os
import time
import uuid
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest import mock

import django

from tests.benchmarks.simulation import Costs, Plan, simulate

PICTURE = Path(__file__).parents[2] / "docs" / "explanation" / "scale.png"
ROWS, WAIT, CHUNKSIZE = 1_000_000_000, 0.01, 100
"""The plan: objects that take 10 ms, and so chunks that take a second."""
DASK = {"caller": 1.0e-3, "scheduler": 1.3e-3, "chunk": 3.2e-3, "latency": 20e-3}
"""Of one long chunk, in seconds: CPU time of each part, and what a chunk is on its way."""
CPUS, FLUSH, ROUND_TRIP = 16, 1e-3, 0.3e-3
"""Of the database server and the network that are assumed."""
ROUND_TRIPS = {"object": 3, "chunk": 2, "write-behind": 0}
CHUNK = {"transaction": "chunk"}
MODES = {"object": {}, "chunk": CHUNK, "write-behind": {**CHUNK, "batch_writes": True}}
IN_FLIGHT, KEY_BYTES = 4, 100
"""Chunks in flight per worker, and what a key takes in the caller's memory."""


def waits_and_saves(name, wait, asleep):
    from django.db import connections

    from tests.models import Tag

    if wait:
        time.sleep(wait)
    Tag(name=name).save(using="postgres")
    if asleep:
        with connections["postgres"].cursor() as cursor:
            cursor.execute("SELECT pg_sleep(%s)", [asleep])


def tells_backend_seconds(_item):
    """CPU seconds of the server's process that this worker is connected to."""
    import psutil
    from django.db import connections

    with connections["postgres"].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    return sum(psutil.Process(pid).cpu_times()[:2])


def operation(mode, *, workers, chunksize, executor="thread", wait=0.0, asleep=0.0):
    from poolsave import pooled_operation

    made = pooled_operation(waits_and_saves, databases=("postgres",), executor=executor, workers=workers)
    return made.using(chunksize=chunksize, **MODES[mode]).bind(wait=wait, asleep=asleep)


def names(count, every=0.0):
    for _ in range(count):
        if every:
            time.sleep(every)
        yield uuid.uuid4().hex


def measured_rate(made, count, every=0.0):
    """Objects per second, without the first and the last fifth."""
    ended = []
    for outcome in made.stream(names(count, every)):
        assert outcome.ok, outcome
        ended.append(time.perf_counter())
    first, last = len(ended) // 5, len(ended) * 4 // 5
    return (last - first) / (ended[last] - ended[first])


def measured_costs(mode):
    """What a row costs in one worker, by runs with chunks of two sizes; the database's share is its own CPU time."""
    seconds = {size: 1 / measured_rate(operation(mode, workers=1, chunksize=size), 1500) for size in (10, 100)}
    transaction = 0.0 if mode == "object" else max(0.0, (seconds[10] - seconds[100]) / (1 / 10 - 1 / 100))
    row = seconds[100] - transaction / 100
    return Costs(caller=0.3e-3, row=row, database=0.0, transaction=transaction)


SETTINGS = [
    ("object", 2, 0.02, 10, {}),
    ("object", 8, 0.05, 10, {}),
    ("object", 32, 0.2, 5, {}),
    ("chunk", 8, 0.05, 20, {}),
    ("chunk", 32, 0.2, 5, {}),
    ("write-behind", 16, 0.1, 10, {}),
    ("object", 16, 0.1, 5, {"executor": "process"}),
    ("object", 16, 0.02, 5, {"connections": 4, "asleep": 0.05}),
    ("object", 32, 0.02, 5, {"connections": 8, "asleep": 0.1}),
    ("object", 16, 0.05, 5, {"every": 0.01}),
]
"""Mode, workers, seconds of waiting per object, chunk size, and what else limits: the connections of a pooler, each
taken for some time longer, or a source that is slow."""


def predicted_rate(costs, mode, workers, wait, chunksize, connections=None, asleep=0.0, every=0.0, executor="thread"):
    if connections is not None:  # a transaction has its connection from the first statement to the last
        costs = replace(costs, row=0.0, transaction=costs.row + asleep)
    costs = replace(costs, caller=costs.caller + chunksize * every)
    plan = Plan(
        workers=workers, wait=wait, chunksize=chunksize, per_chunk=mode != "object", servers=connections or workers
    )
    return simulate(plan, costs, chunks_per_worker=20).rate


def real_rate(mode, workers, wait, chunksize, connections=None, asleep=0.0, every=0.0, executor="thread"):
    from django.db import connections as django_connections

    from tests.support import pgbouncer

    settings = django_connections["postgres"].settings_dict
    way = pgbouncer.pooler(settings, size=connections) if connections else nullcontext({})
    with way as through, mock.patch.dict(settings, through):
        django_connections["postgres"].close()
        made = operation(mode, workers=workers, chunksize=chunksize, executor=executor, wait=wait, asleep=asleep)
        return measured_rate(made, workers * chunksize * 10, every)


def check(costs):
    print("| mode | workers | waits | chunk | besides | simulated | measured | differs by |")
    print("|---|---|---|---|---|---|---|---|")
    for mode, workers, wait, size, more in SETTINGS:
        predicted = predicted_rate(costs[mode], mode, workers, wait, size, **more)
        real = real_rate(mode, workers, wait, size, **more)
        besides = besides_of(more)
        print(
            f"| {mode} | {workers} | {1000 * wait:.0f} ms | {size} | {besides} | {predicted:.0f} | {real:.0f} "
            f"| {100 * (predicted / real - 1):+.0f} % |",
            flush=True,
        )


def besides_of(more):
    if "connections" in more:
        return f"{more['connections']} connections of PgBouncer, each {1000 * more['asleep']:.0f} ms longer"
    return f"a row every {1000 * more['every']:.0f} ms" if "every" in more else more.get("executor", "")


def far_costs(mode, database, transaction):
    """Of a Dask cluster; with a row of the ledger for each transaction, which costs what a row costs."""
    per_row, rows = mode == "object", ROUND_TRIPS[mode] * ROUND_TRIP
    return Costs(
        **DASK,
        row=0.5e-3,
        database=database,
        transaction=transaction + database,
        network=rows + (ROUND_TRIP if per_row else 0.0),
    )


def far_plan(mode, workers):
    return Plan(workers=workers, wait=WAIT, chunksize=CHUNKSIZE, per_chunk=mode != "object", servers=CPUS, flush=FLUSH)


def connections_at_once(mode, workers, rate, costs):
    """Behind a pooler: those that have a transaction open, which is a chunk's whole time if it is the chunk's."""
    if mode != "object":
        return workers
    return min(workers, rate * (costs.database + costs.transaction + costs.network + FLUSH))


def plan_table(server, base):
    print("| workers | mode | rows/s | hours | limit | connections, behind a pooler | caller | ledger rows |")
    print("|---|---|---|---|---|---|---|---|")
    for workers in (10, 100, 1000):
        for mode in MODES:
            costs = far_costs(mode, *server[mode])
            result = simulate(far_plan(mode, workers), costs, chunks_per_worker=12)
            held = connections_at_once(mode, workers, result.rate, costs)
            memory = base + IN_FLIGHT * workers * CHUNKSIZE * KEY_BYTES / 1e6
            ledger = ROWS if mode == "object" else ROWS // CHUNKSIZE
            print(
                f"| {workers:,} | {mode} | {result.rate:,.0f} | {ROWS / result.rate / 3600:,.1f} "
                f"| {result.limit} ({result.load[result.limit]:.0%}) | {workers:,}, {held:,.0f} | {memory:.0f} MB "
                f"| {ledger:,} |",
                flush=True,
            )


def picture(server):
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    numbers = [10, 30, 100, 200, 400, 700, 1000, 1500, 2000]
    for mode, colour in zip(MODES, ("#0c7c59", "#2b59c3", "#d36135"), strict=True):
        rates = [
            simulate(far_plan(mode, workers), far_costs(mode, *server[mode]), chunks_per_worker=6).rate
            for workers in numbers
        ]
        axes.loglog(numbers, [ROWS / rate / 3600 for rate in rates], "o-", color=colour, label=mode)
    axes.set_xlabel("workers")
    axes.set_ylabel("hours")
    axes.set_title("A billion rows of 10 ms each, simulated")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(PICTURE, dpi=110)


def caller_megabytes():
    import distributed  # noqa: F401
    import psutil

    return psutil.Process().memory_info().rss / 1e6


def server_seconds(mode, count=2000):
    """CPU seconds of the server for a row and for a transaction, in one connection, by chunks of two sizes."""
    return tuple(max(0.0, seconds) for seconds in solved({size: server_run(mode, size, count) for size in (10, 100)}))


def solved(seconds):
    transaction = (seconds[10] - seconds[100]) / (1 / 10 - 1 / 100)
    return seconds[100] - transaction / 100, transaction


def server_run(mode, size, count):
    made = operation(mode, workers=1, chunksize=size, executor="serial")
    before = tells_backend_seconds(None)
    assert made.map(names(count)).succeeded == count
    return (tells_backend_seconds(None) - before) / count


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.billion")
    parser.add_argument("--check", action="store_true", help="only the real runs beside the simulated ones")
    arguments = parser.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    django.setup()
    from django.core.management import call_command

    from tests.support import postgres

    postgres.start_for_this_run()
    call_command("migrate", database="postgres", run_syncdb=True, verbosity=0)
    check({mode: measured_costs(mode) for mode in MODES})
    if arguments.check:
        return
    server = {mode: server_seconds(mode) for mode in MODES}
    for mode, (row, transaction) in server.items():
        print(f"{mode}: {1e6 * row:.0f} us of the server's CPU for a row, {1e6 * transaction:.0f} us for a transaction")
    plan_table(server, caller_megabytes())
    picture(server)


if __name__ == "__main__":
    from tests.benchmarks import billion  # by the name under which worker processes find its function

    billion.main()
