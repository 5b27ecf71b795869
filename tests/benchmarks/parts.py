"""What is compared with what: the parts of a run, each with the cells that are measured in it."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from tests.benchmarks import contenders, databases, workloads
from tests.benchmarks.measuring import Cell

CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@dataclass(kw_only=True)
class Part:
    key: str
    title: str
    about: str
    cells: list[Cell]
    unit: str = "s"
    per: int = 0
    """If it is not 0, figures are told per so many objects."""
    baseline: str = "plain loop"
    rounds: int | None = None
    """At most so many rounds; None: as many as asked for."""


def setting(options):
    return ", ".join(f"{name}={value}" for name, value in options.items() if name not in ("workers", "progress"))


def peer(name, run, function, objects, options=None, **cell):
    options = options or {}
    return Cell(contender=name, setting=setting(options), run=partial(run, function, objects, **options), **cell)


def ours(function, objects, options, **cell):
    shown = {key: value for key, value in options.items() if key != "executor"}
    executor = options.get("executor", "process")
    run = partial(contenders.with_poolsave, function, objects, **options)
    return Cell(contender=f"poolsave {executor}", setting=setting(shown), run=run, **cell)


def no_ops(quick):
    count = 5_000 if quick else 200_000
    objects, function = range(count), workloads.nothing
    pool = {"workers": CPUS}
    cells = [peer("plain loop", contenders.plain_loop, function, objects)]
    cells += [peer("ThreadPoolExecutor.map", contenders.thread_pool, function, objects, pool)]
    for chunksize in (100, 1000):
        sized = {**pool, "chunksize": chunksize}
        cells += [
            peer("ProcessPoolExecutor.map", contenders.process_pool_map, function, objects, sized),
            peer("Pool.imap_unordered", contenders.pool_imap_unordered, function, objects, sized),
            peer("Pool.map", contenders.pool_map, function, objects, sized),
            peer("joblib", contenders.joblib_parallel, function, objects, {**sized, "backend": "multiprocessing"}),
            peer("mpire", contenders.mpire_map, function, objects, sized),
            peer("pebble", contenders.pebble_map, function, objects, sized),
        ]
        cells += [ours(function, objects, {**sized, "transaction": None})]
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


def single_no_ops(quick):
    count = 500 if quick else 5_000
    objects, function = range(count), workloads.nothing
    sized = {"workers": CPUS, "chunksize": 1}
    cells = [
        peer("plain loop", contenders.plain_loop, function, objects),
        peer("article", contenders.article, function, objects),
        peer("ThreadPoolExecutor.map", contenders.thread_pool, function, objects, {"workers": CPUS}),
        peer("ProcessPoolExecutor.map", contenders.process_pool_map, function, objects, sized),
        peer("Pool.imap_unordered", contenders.pool_imap_unordered, function, objects, sized),
        peer("Pool.map", contenders.pool_map, function, objects, sized),
        peer("joblib", contenders.joblib_parallel, function, objects, {**sized, "backend": "multiprocessing"}),
        peer("mpire", contenders.mpire_map, function, objects, sized),
        peer("pebble", contenders.pebble_map, function, objects, sized),
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


def expect(wanted, table, where="true"):
    def check():
        found = databases.count(table, where)
        if found != wanted:
            raise ValueError(f"{found} rows in {table}, expected {wanted}")

    return check


def users(database, quick):
    count = 60 if quick else 3_000
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
        peer("Pool.map", contenders.pool_map, function, objects, sized, **common),
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
    name = {"postgres": "PostgreSQL", "sqlite": "SQLite"}[database]
    return Part(
        key=f"users_{database}",
        title=f"Users on {name} ({count:,})",
        about="A user, a profile that a receiver writes, and a group: three rows. Nothing is hashed.",
        cells=cells,
    )


OURS = {
    "process": ("object", "chunk", None),
    "thread": ("object", "chunk", None),
    "serial": ("object", "chunk", None),
    "auto": ("object", "chunk", None),
}

PARTS: dict[str, Callable[[bool], Part]] = {
    "no_ops": no_ops,
    "single_no_ops": single_no_ops,
    "users_postgres": partial(users, "postgres"),
    "users_sqlite": partial(users, "sqlite"),
}


def tried_first():
    """Every contender over a few objects, for what it imports."""
    objects, function, pool = range(4), workloads.ask_the_database, {"workers": 2}
    runs = [
        contenders.thread_pool, contenders.process_pool_map, contenders.pool_imap_unordered, contenders.joblib_parallel,
        contenders.mpire_map, contenders.pebble_map,
    ]  # fmt: skip
    for database in ("sqlite", "postgres"):
        yield peer("article", contenders.article, function, objects, database=database)
        yield peer("joblib", contenders.joblib_parallel, function, objects, {**pool, "backend": "multiprocessing"})
        yield from (peer(run.__name__, run, function, objects, pool, database=database) for run in runs)
        for executor in OURS:
            yield ours(function, objects, {"workers": 2, "executor": executor}, database=database)
        yield ours(function, objects, {"workers": 2, "transaction": "chunk"}, database=database)
