"""What pools cost by themselves: to start and stop, to send an object and to hear of it, in seconds and in memory."""

from functools import partial

from tests.benchmarks import contenders, workloads
from tests.benchmarks.measuring import Cell
from tests.benchmarks.parts import CPUS, Part, ours, peer


def pools(function, objects, sized):
    """The pools of others that take a chunk size."""
    return [
        peer("ProcessPoolExecutor.map", contenders.process_pool_map, function, objects, sized),
        peer("Pool.imap_unordered", contenders.pool_imap_unordered, function, objects, sized),
        peer("Pool.map", contenders.pool_map, function, objects, sized),
        peer("joblib", contenders.joblib_parallel, function, objects, {**sized, "backend": "multiprocessing"}),
        peer("mpire", contenders.mpire_map, function, objects, sized),
        peer("pebble", contenders.pebble_map, function, objects, sized),
    ]


def no_ops(quick):
    count = 5_000 if quick else 200_000
    objects, function = range(count), workloads.nothing
    pool = {"workers": CPUS}
    cells = [peer("plain loop", contenders.plain_loop, function, objects)]
    cells += [peer("ThreadPoolExecutor.map", contenders.thread_pool, function, objects, pool)]
    for chunksize in (100, 1000):
        sized = {**pool, "chunksize": chunksize}
        cells += [*pools(function, objects, sized), ours(function, objects, {**sized, "transaction": None})]
    cells += [
        peer("Pool.map", contenders.pool_map, function, objects, pool),
        peer("joblib", contenders.joblib_parallel, function, objects, pool),
        peer("mpire", contenders.mpire_map, function, objects, pool),
    ]
    cells += [
        ours(function, objects, {**pool, "executor": executor, "transaction": None})
        for executor in ("process", "thread", "serial", "auto")
    ]
    return Part(
        key="no_ops",
        title=f"Objects that do nothing ({count:,})",
        about="What a pool costs by itself, its start and end included, per object.",
        cells=cells,
        unit="µs per object",
        per=count,
    )


def no_op_rows(quick):
    count = 2_000 if quick else 100_000
    rows = [{"username": f"user{number}", "email": f"user{number}@example.org"} for number in range(count)]
    function, pool = workloads.give_back, {"workers": CPUS}
    cells = [peer("plain loop", contenders.plain_loop, function, rows)]
    for chunksize in (100, 1000):
        cells += pools(function, rows, {**pool, "chunksize": chunksize})
    cells = [cell for cell in cells if cell.contender != "mpire"]
    cells += [peer("Pool.map", contenders.pool_map, function, rows, pool)]
    cells += [
        ours(function, rows, {**pool, "executor": executor, "transaction": None})
        for executor in ("process", "thread", "serial", "auto")
    ]
    return Part(
        key="no_op_rows",
        title=f"Rows there and back ({count:,})",
        about="The same for dictionaries of two strings, which the function gives back. mpire is left out, since it "
        "takes dictionaries for keyword arguments.",
        cells=cells,
        unit="µs per object",
        per=count,
    )


def single_no_ops(quick):
    count = 500 if quick else 5_000
    objects, function = range(count), workloads.nothing
    sized = {"workers": CPUS, "chunksize": 1}
    cells = [
        peer("plain loop", contenders.plain_loop, function, objects),
        peer("article", contenders.article, function, objects),
        peer("ThreadPoolExecutor.map", contenders.thread_pool, function, objects, {"workers": CPUS}),
        *pools(function, objects, sized),
        ours(function, objects, {**sized, "transaction": None}),
        ours(function, objects, {**sized, "executor": "thread", "transaction": None}),
    ]
    return Part(
        key="single_no_ops",
        title=f"Objects that do nothing, one by one ({count:,})",
        about="What it costs to send one object and to hear of it: chunks of one, as a slow source makes them.",
        cells=cells,
        unit="µs per object",
        per=count,
    )


def start_up(quick):
    objects, function = range(8), workloads.ask_the_database
    cells = []
    for method in ("fork", "forkserver", "spawn"):
        options = {"workers": 4, "chunksize": 2, "start_method": method}
        run = partial(contenders.with_poolsave, function, objects, **options)
        warm_up = run if method == "forkserver" else None
        cells += [Cell(contender=f"poolsave process, {method}", run=run, warm_up=warm_up)]
    return Part(
        key="start_up",
        title="Starting and stopping",
        about="Four workers are started, answer eight trivial queries on PostgreSQL, and are stopped. The first "
        "pool by forkserver is left out, since it starts the server, which imports Django once per process.",
        cells=cells,
        baseline="poolsave process, fork",
    )


def memory(quick):
    function, cells = workloads.nothing, []
    for count in (1_000, 5_000) if quick else (10_000, 100_000, 1_000_000):
        peers = {
            "ProcessPoolExecutor.map": contenders.process_pool_drained,
            "Pool.imap_unordered": contenders.pool_imap_drained,
        }
        for name, run in peers.items():
            run = partial(over_generator, run, function, count, workers=CPUS, chunksize=1000)
            cells += [Cell(contender=name, case=f"{count:,}", setting="chunksize=1000", run=run)]
        for keep in ("failures", "values"):
            options = {"workers": CPUS, "transaction": None, "keep": keep}
            run = partial(over_generator, contenders.with_poolsave, function, count, **options)
            cells += [Cell(contender=f"poolsave process, keep={keep}", case=f"{count:,}", run=run)]
    return Part(
        key="memory",
        title="Memory of the caller",
        about="By how many MB the calling process grows over objects that do nothing and come from a generator; the "
        "results of the two others are thrown away as they come.",
        cells=cells,
        unit="MB",
        figure="grown",
        by_case=True,
        baseline="Pool.imap_unordered",
        rounds=1,
    )


def over_generator(run, function, count, **options):
    """Make the generator in the process that is measured."""
    run(function, workloads.one_by_one(count), **options)
