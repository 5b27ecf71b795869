"""Saves: users, alone and with set-up code that computes or waits, a table that is updated, and workers that die."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from django.db import connections

from tests.benchmarks import contenders, databases, settings, workloads
from tests.benchmarks.measuring import Cell
from tests.benchmarks.parts import CPUS, Part, expect, ours, peer, setting

OURS = {
    "process": ("object", "chunk", None),
    "thread": ("object", "chunk"),  # without any they do what ThreadPoolExecutor and the loop do
    "serial": ("object", "chunk"),
    "auto": ("object", "chunk", None),
}


SERVED_BY = {
    "postgres": ("PostgreSQL", 3_000, ""),
    "sqlite": ("SQLite", 3_000, " Write-ahead log, `synchronous=NORMAL`."),
    "sqlite_default": ("SQLite as Django opens it", 600, " Neither pragmas nor a write-ahead log: each COMMIT syncs."),
}


def users(database, quick):
    name, count, more = SERVED_BY[database]
    count = 60 if quick else count
    objects, function = range(count), workloads.create_user
    pool, sized = {"workers": CPUS}, {"workers": CPUS, "chunksize": 100}
    common = {"database": database, "before": databases.empty_tables, "check": expect(count, "benchmarks_profile")}
    cells = [
        peer("plain loop", contenders.plain_loop, function, objects, **common),
        peer("loop, atomic() per object", contenders.loop_with_transactions, function, objects, **common),
        peer("article", contenders.article, function, objects, **common),
        peer("ThreadPoolExecutor.map", contenders.thread_pool, function, objects, pool, **common),
        peer("ProcessPoolExecutor.map", contenders.process_pool_map, function, objects, sized, **common),
        peer("Pool.imap_unordered", contenders.pool_imap_unordered, function, objects, sized, **common),
        peer(
            "joblib", contenders.joblib_parallel, function, objects, {**sized, "backend": "multiprocessing"}, **common
        ),
        peer("mpire", contenders.mpire_map, function, objects, sized, **common),
        peer("pebble", contenders.pebble_map, function, objects, sized, **common),
        peer("hand-written best", contenders.hand_written, function, objects, {**pool, "chunksize": 100}, **common),
        Cell(contender="bulk_create (the limit)", run=partial(workloads.bulk_create_users, objects), **common),
    ]
    cells += [
        ours(function, objects, {**pool, "executor": executor, "transaction": transaction}, **common)
        for executor, transactions in OURS.items()
        for transaction in transactions
    ]
    if database == "postgres":
        cells += [ours(function, objects, options, **common) for options in WRITE_BEHIND]
    return Part(
        key=f"users_{database}",
        title=f"Users on {name} ({count:,})",
        about="A user, a profile that a receiver writes, and a group: three rows. Nothing is hashed." + more,
        cells=cells,
        objects=count,
    )


def users_far(quick):
    """Sixteen workers wait well for the network, and are what is set by hand for it."""
    count = 60 if quick else 2_000
    objects, function, pool = range(count), workloads.create_user, {"workers": 16}
    common = {"database": "far", "before": databases.empty_tables, "check": expect(count, "benchmarks_profile")}
    by_hand = {**pool, "chunksize": 100}
    return Part(
        key="users_far",
        title=f"Users on PostgreSQL, 1 ms away ({count:,})",
        about="The same users, with the server behind a proxy that holds back each direction for 0.5 ms. Those with "
        "`workers=auto` begin with as many workers as there are CPUs; those that name none have so many, and the "
        "article has 4.",
        cells=[
            peer("plain loop", contenders.plain_loop, function, objects, **common),
            peer("article", contenders.article, function, objects, **common),
            peer("ThreadPoolExecutor.map", contenders.thread_pool, function, objects, pool, **common),
            peer("ProcessPoolExecutor.map", contenders.process_pool_map, function, objects, pool, **common),
            peer("hand-written best", contenders.hand_written, function, objects, by_hand, **common),
            *(ours(function, objects, {"executor": "process", **options}, **common) for options in FAR),
            ours(function, objects, {"executor": "thread", "workers": "auto", "transaction": "object"}, **common),
            ours(function, objects, {"executor": "auto", "workers": "auto", "transaction": "object"}, **common),
        ],
        objects=count,
    )


FAR = [
    {"workers": CPUS, "transaction": "object"},
    {"workers": "auto", "transaction": "object"},
    {"workers": 16, "transaction": "object"},
    {"workers": "auto", "transaction": "chunk"},
    {"workers": "auto", "transaction": "chunk", "batch_writes": True},
]
WRITE_BEHIND = [
    {"workers": CPUS, "executor": "process", "transaction": "chunk", "batch_writes": True},
    {"workers": "auto", "executor": "process", "transaction": "object"},
]


def hashing(quick):
    count = 10 if quick else 400
    objects, function = range(count), workloads.hash_and_create_user
    pool, sized = {"workers": CPUS}, {"workers": CPUS, "chunksize": 10}
    common = {"before": databases.empty_tables, "check": expect(count, "benchmarks_profile")}
    return Part(
        key="hashing",
        title=f"Set-up code that computes ({count:,})",
        about="A password hash of about 10 ms before the save of a user as above, on PostgreSQL.",
        cells=[
            peer("plain loop", contenders.plain_loop, function, objects, **common),
            peer("article", contenders.article, function, objects, **common),
            peer("ThreadPoolExecutor.map", contenders.thread_pool, function, objects, pool, **common),
            peer("ProcessPoolExecutor.map", contenders.process_pool_map, function, objects, sized, **common),
            peer("hand-written best", contenders.hand_written, function, objects, sized, **common),
            *(ours(function, objects, {**pool, **options}, **common) for options in COMPUTING),
        ],
    )


COMPUTING = [
    {"executor": "process", "transaction": "object"},
    {"executor": "process", "transaction": "chunk"},
    {"executor": "process", "transaction": "chunk", "batch_writes": True},
    {"executor": "thread", "transaction": "object"},
    {"executor": "auto", "transaction": "object"},
]


def waiting(quick):
    count = 30 if quick else 1_500
    functions = workloads.wait_and_create_user, workloads.wait_and_create_user_at_once
    cells = cells_that_wait(functions, count, "benchmarks_profile")
    cells += [
        Cell(
            contender="poolsave pipeline",
            setting="16 threads, then processes, transaction=chunk",
            run=partial(wait_here_and_save_there, range(count)),
            before=databases.empty_tables,
            check=expect(count, "benchmarks_profile"),
        )
    ]
    return Part(
        key="waiting",
        title=f"Set-up code that waits ({count:,})",
        about="5 ms of waiting before the save of a user as above, on PostgreSQL, with 16 workers (the article has 4). "
        "With `transaction=None` the function has an `atomic()` of its own, around the save and not "
        "around the wait, and with `object` and `chunk` the transaction waits, too; the pipeline waits in 16 threads "
        "and saves in as many processes as there are CPUs. "
        "The loop does a fifth of the objects, and its seconds are multiplied by five.",
        cells=cells,
    )


def waiting_one_row(quick):
    count = 30 if quick else 1_500
    functions = workloads.wait_and_write_note, workloads.wait_and_write_note_at_once
    return Part(
        key="waiting_one_row",
        title=f"Set-up code that waits, and one row ({count:,})",
        about="The same before the save of a single row, which computes less, so that threads stand less in the way of "
        "each other.",
        cells=cells_that_wait(functions, count, "benchmarks_note"),
    )


def cells_that_wait(functions, count, table):
    """`functions`: one that waits and saves, and one that does so with a transaction around the save alone."""
    function, at_once = functions
    some, objects, pool = count // 5, range(count), {"workers": 16}
    common = {"before": databases.empty_tables, "check": expect(count, table)}
    with_poolsave = [
        (at_once, {"executor": "thread", "transaction": None}),
        (function, {"executor": "thread", "transaction": "object"}),
        (function, {"executor": "thread", "transaction": "chunk"}),
        (function, {"executor": "process", "transaction": "object"}),
        (function, {"executor": "auto", "transaction": "object"}),
    ]
    return [
        Cell(
            contender="plain loop",
            setting="over 1/5",
            run=partial(contenders.plain_loop, function, range(some)),
            before=databases.empty_tables,
            check=expect(some, table),
            scale=5,
        ),
        peer("article", contenders.article, function, objects, **common),
        peer("ThreadPoolExecutor.map", contenders.thread_pool, function, objects, pool, **common),
        peer("ProcessPoolExecutor.map", contenders.process_pool_map, function, objects, pool, **common),
        *(ours(run, objects, {**pool, **options}, **common) for run, options in with_poolsave),
    ]


def wait_here_and_save_there(objects):
    wait = contenders.operation(workloads.wait, workers=16, executor="thread", transaction=None)
    save = contenders.operation(workloads.create_user, workers=CPUS, transaction="chunk")
    (wait | save).map(objects).raise_if_failed()


def table(quick):
    count = 600 if quick else 200_000
    share = count // 20
    common = {"before": partial(fill, count), "check": expect(share, "benchmarks_product", "price = 1"), "scale": 20}
    by_hand = partial(save_ranges, share)
    cells = [
        Cell(contender="plain loop", run=partial(loop_over_rows, share), **common),
        Cell(contender="hand-written best", setting="ranges of 100", run=by_hand, **common),
    ]
    for executor, transaction in [("process", "object"), ("process", "chunk"), ("auto", "chunk")]:
        run = partial(map_rows, share, workers=CPUS, keep="failures", executor=executor, transaction=transaction)
        cells += [Cell(contender=f"poolsave {executor}", setting=f"transaction={transaction}", run=run, **common)]
    batched = {"transaction": "chunk", "batch_writes": True}
    run = partial(map_rows, share, workers=CPUS, keep="failures", **batched)
    cells += [Cell(contender="poolsave process", setting=setting(batched), run=run, **common)]
    return Part(
        key="table",
        title=f"A table of {count:,} rows",
        about='Every row of a queryset is changed and saved, on PostgreSQL, with `keep="failures"`. Each does the '
        "first twentieth of the rows, and its seconds are multiplied by twenty.",
        cells=cells,
        objects=count,
    )


def whole_table(quick):
    """Once more without any scaling, which takes long: what it does to memory, and whether it stays as fast."""
    count = 600 if quick else 200_000
    run = partial(map_rows, count, workers=CPUS, keep="failures", transaction="chunk")
    check = expect(count, "benchmarks_product", "price = 1")
    settings = {"setting": "transaction=chunk", "before": partial(fill, count), "check": check}
    return Part(
        key="whole_table",
        title=f"All of {count:,} rows",
        about="The same over the whole table; the server then also has its dead rows to clear away.",
        cells=[Cell(contender="poolsave process", run=run, **settings)],
        rounds=2,
    )


def fill(count):
    databases.empty_tables()
    databases.fill_products(count)


def loop_over_rows(count):
    for product in workloads.products(count).iterator():
        workloads.raise_price(product)


def save_ranges(count):
    ranges = [(first, min(first + 99, count)) for first in range(1, count + 1, 100)]
    contenders.pool_imap_unordered(workloads.raise_prices_of, ranges, workers=CPUS)


def map_rows(count, **options):
    contenders.with_poolsave(workloads.raise_price, workloads.products(count), **options)


def recovery(quick):
    count, deaths = (60, 2) if quick else (2_000, 10)
    marks = Path(settings.FOLDER, "marks")
    dying = [(number, str(marks / str(number)) if number % (count // deaths) == 7 else "") for number in range(count)]
    clean = [(number, "") for number in range(count)]
    common = {"before": partial(start_over, marks), "check": expect(count, "benchmarks_profile")}
    cells = [
        Cell(
            contender=f"poolsave process, {name}",
            case=transaction,
            run=partial(save_all, objects, workers=CPUS, transaction=transaction),
            **common,
        )
        for transaction in ("object", "chunk")
        for name, objects in {"nobody dies": clean, f"{deaths} workers are killed": dying}.items()
    ]
    return Part(
        key="recovery",
        title=f"Workers that die ({count:,} objects)",
        about="Users as above on PostgreSQL; some objects kill the worker that they are in by SIGKILL. What "
        "failed with it is fed again, which is in the clock, and then all users are there.",
        cells=cells,
        by_case=True,
        baseline="poolsave process, nobody dies",
    )


def start_over(marks):
    databases.empty_tables()
    marks.mkdir(exist_ok=True)
    for mark in marks.iterdir():
        mark.unlink()


def save_all(objects, **options):
    """Feed what has failed again, until nothing fails."""
    operation = contenders.operation(workloads.create_user_or_die, **options)
    while objects:
        objects = operation.map(objects).failed_items()


JOBS = {
    "one row": workloads.write_note,
    "hash of 10 ms, one row": workloads.hash_10_ms_and_write_note,
    "hash of 1 ms, one row": workloads.hash_1_ms_and_write_note,
}


def choosing(counts, jobs, rounds, name, quick):
    cells = []
    for database in ("postgres", "sqlite"):
        for job in jobs:
            for count in (1, 8) if quick else counts:
                cells += contest(database, job, count)
    return Part(
        key=name,
        title=f"Which executor: {', '.join(f'{count:,}' for count in counts)} objects",
        about='What `executor="auto"` chooses, beside the executors among which it chooses. They, and the loop with '
        "`atomic()`, make a transaction of each object; the plain loop does not, and neither does the last column, "
        "which is `auto` with `transaction=None`. Each has done two objects before in the process that is measured, or "
        "the pages of memory that a forked process copies when it comes to them would be most of the time of a small "
        "run. Runs of fewer than 30 objects are repeated, connecting anew, and their median is taken.",
        cells=cells,
        by_case=True,
        rounds=rounds,
    )


def contest(database, job, count):
    told = {"postgres": "PostgreSQL", "sqlite": "SQLite"}[database]
    common = {
        "database": database,
        "before": databases.empty_tables,
        "check": expect(count, "benchmarks_note"),
        "case": f"{told}, {job}, {count:,}",
        "times": max(1, SO_MANY_AT_LEAST // count),
        "between": start_anew,
    }
    objects = range(count)
    loops = {"plain loop": contenders.plain_loop, "loop, atomic()": contenders.loop_with_transactions}
    for name, loop in loops.items():
        yield peer(name, loop, JOBS[job], objects, warm_up=partial(warmed_up, partial(loop, JOBS[job])), **common)
    for name, chosen in CHOICES.items():
        options = {"workers": CPUS, **chosen}
        warm_up = partial(warmed_up, partial(contenders.with_poolsave, JOBS[job], **options))
        yield replace(ours(JOBS[job], objects, options, warm_up=warm_up, **common), contender=name, setting="")


SO_MANY_AT_LEAST = 30
"""Objects of a measurement: smaller runs are repeated, and their median is told."""
CHOICES = {
    **{f"poolsave {executor}": {"executor": executor} for executor in ("serial", "thread", "process", "auto")},
    "poolsave auto, None": {"executor": "auto", "transaction": None},
}


def warmed_up(run):
    run(objects=range(2))
    start_anew()


def start_anew():
    """Leaves no rows and no connection behind."""
    databases.empty_tables()
    connections.close_all()


few = partial(choosing, (1, 10, 100), ("one row", "hash of 10 ms, one row"), None, "few")
many = partial(choosing, (10_000,), ("one row", "hash of 1 ms, one row"), 1, "many")
