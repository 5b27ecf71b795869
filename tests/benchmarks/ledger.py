"""What the ledger of a durable run costs: the same runs with and without it, in turn.

    python -m tests.benchmarks.ledger --rows 20000 --rounds 5
    python -m tests.benchmarks.ledger --rows 0 --ranges 100000

Seconds of the clock, and CPU seconds of the caller, its workers and the server, which other load disturbs less. The
second line takes a run up again whose ledger has that many ranges.
"""

import argparse
import resource
import sys
import time
import tracemalloc
from statistics import median

import psutil

from tests.benchmarks import databases
from tests.support import postgres

CASES = {
    "chunks of 100, 2 workers": {"transaction": "chunk", "chunksize": 100, "workers": 2},
    "one by one, 2 workers": {"transaction": "object", "workers": 2},
    "chunks of 100, 8 workers": {"transaction": "chunk", "chunksize": 100, "workers": 8},
}


def server_seconds():
    """CPU seconds of the server and of all sessions that it has had."""
    pid = (postgres._folder(postgres.url_for_this_run()) / "postmaster.pid").read_text().split()[0]
    main = psutil.Process(int(pid))
    return sum(_seconds_of(each) for each in (main, *main.children(recursive=True)))


def _seconds_of(process):
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system + times.children_user + times.children_system


def client_seconds():
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def measured(operation, rows, options, run):
    began = time.perf_counter(), client_seconds(), server_seconds()
    report = operation.using(**options).map(rows, run=run)
    ended = time.perf_counter(), client_seconds(), server_seconds()
    assert report.ok, report
    clock, client, server = (after - before for before, after in zip(began, ended, strict=True))
    return clock, client, server


def overhead(rows, rounds, only):
    from tests.benchmarks.models import Product
    from tests.benchmarks.workloads import raise_price_durably as raise_price

    databases.fill_products(rows)
    for case, options in CASES.items():
        if only not in case:
            continue
        found = {False: [], True: []}
        for number in range(rounds):
            for durable in (False, True) if number % 2 else (True, False):
                run = f"{case} {number}" if durable else None
                found[durable].append(measured(raise_price, Product.objects.all(), options, run))
        for at, what in enumerate(["clock", "CPU client", "CPU server"]):
            plain, durable = (median(each[at] for each in found[kind]) for kind in (False, True))
            print(f"{case:26} {what:10} {plain:8.3f} s -> {durable:8.3f} s  {durable / plain - 1:+.1%}", flush=True)
        plain, durable = (median(each[1] + each[2] for each in found[kind]) for kind in (False, True))
        print(f"{case:26} {'CPU all':10} {plain:8.3f} s -> {durable:8.3f} s  {durable / plain - 1:+.1%}", flush=True)


def resume(ranges):
    """Take a run up again with so many ranges that touch."""
    from poolsave.ledger.models import Chunk, Run
    from tests.benchmarks.models import Product
    from tests.benchmarks.workloads import raise_price_durably as raise_price

    databases.fill_products(10)
    raise_price.using(workers=1, executor="serial").map(Product.objects.filter(pk__gte=0), run="resumed")
    run = Run.objects.get(name="resumed")
    Chunk.objects.filter(run_id=run.pk).delete()
    Run.objects.filter(pk=run.pk).update(status="paused", high=str(ranges + 1))
    rows = (Chunk(run_id=run.pk, sequence=n, low=str(n) if n else "", high=str(n + 1), done=1) for n in range(ranges))
    Chunk.objects.bulk_create(rows, batch_size=5000)
    tracemalloc.start()
    began = time.perf_counter(), client_seconds()
    report = raise_price.using(executor="serial").map(Product.objects.filter(pk__gte=0), run="resumed")
    clock, client = time.perf_counter() - began[0], client_seconds() - began[1]
    _now, peak = tracemalloc.get_traced_memory()
    print(f"{ranges} ranges: {clock:.2f} s, {client:.2f} s of CPU in the caller, {peak / 1e6:.1f} MB; {report.run}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="a part of a case's name")
    parser.add_argument("--ranges", type=int, default=0)
    arguments = parser.parse_args()
    with databases.own_databases():
        import django

        django.setup()
        databases.make_tables()
        if arguments.rows:
            overhead(arguments.rows, arguments.rounds, arguments.only)
        if arguments.ranges:
            resume(arguments.ranges)


if __name__ == "__main__":
    sys.exit(main())
