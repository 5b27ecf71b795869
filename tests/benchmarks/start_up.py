"""How long a pool takes to start, run 8 trivial queries on 4 workers and stop, by start method.

    python -m tests.benchmarks.start_up

The first pool of a process is left out: it starts the fork server, which imports Django once. Start methods alternate,
so that what else the machine does meets them alike; only the ratios mean something.
"""

import statistics
import time

import django

ROUNDS = 9


def seconds(operation):
    began = time.perf_counter()
    operation.map(range(8)).raise_if_failed()
    return time.perf_counter() - began


def main():
    django.setup()
    from tests import operations

    queries = operations.asks_the_database.using(workers=4, chunksize=2, databases=("postgres",))
    pools = {method: queries.using(start_method=method) for method in ("fork", "forkserver", "spawn")}
    for operation in pools.values():
        seconds(operation)
    times = {method: [] for method in pools}
    for _ in range(ROUNDS):
        for method, operation in pools.items():
            times[method].append(seconds(operation))
    fork = statistics.median(times["fork"])
    print(f"{'':12} {'median':>8} {'least':>8} {'most':>8} {'x fork':>7}")
    for method, found in times.items():
        median = statistics.median(found)
        print(f"{method:12} {median:8.3f} {min(found):8.3f} {max(found):8.3f} {median / fork:7.2f}")


if __name__ == "__main__":
    main()
