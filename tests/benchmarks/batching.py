"""`batch_writes` on PostgreSQL: a row with an audit row, a table, and keys that are taken, here and 1 ms away."""

from functools import partial

from tests.benchmarks import contenders, databases, saving, workloads
from tests.benchmarks.measuring import Cell
from tests.benchmarks.parts import CPUS, Part, expect, ours, peer, setting

PLACES = {"postgres": "", "far": ", 1 ms away"}
WORKERS = {"postgres": CPUS, "far": "auto"}
TAKEN = 20
"""One object in so many has a unique key that is taken."""


def audited(database, quick):
    count = 60 if quick else {"postgres": 6_000, "far": 2_000}[database]
    objects, function = range(count), workloads.create_entry
    common = {
        "database": database,
        "before": databases.empty_tables,
        "check": expect(count, "benchmarks_auditrow"),
    }
    return Part(
        key=f"audited_{database}",
        title=f"A row and its audit row on PostgreSQL{PLACES[database]} ({count:,})",
        about="`create()`, and a receiver that creates a row with the values of the first one.",
        cells=[
            peer("plain loop", contenders.plain_loop, function, objects, **common),
            Cell(
                contender="bulk_create (the limit)",
                run=partial(workloads.bulk_create_entries, objects),
                **common,
            ),
            *(ours(function, objects, {"executor": "process", **options}, **common) for options in ways(database)),
        ],
        objects=count,
    )


def taken(quick):
    """The loop catches the error, as poolsave does."""
    count = 60 if quick else 3_000
    objects, function = range(count), workloads.create_user_unless_taken
    common = {"before": take_names, "check": expect(count - count // TAKEN, "benchmarks_profile")}
    return Part(
        key="taken",
        title=f"Users of whom 5 % have a name that is taken ({count:,})",
        about="Users as above on PostgreSQL. One in twenty is refused at the unique name, and fails alone; the loop "
        "catches the error.",
        cells=[
            peer("plain loop", contenders.loop_past_errors, function, objects, **common),
            *(
                Cell(
                    contender="poolsave process",
                    setting=setting(options),
                    run=partial(contenders.with_failures, function, objects, keep="failures", **options),
                    **common,
                )
                for options in ways("postgres")
            ),
        ],
        objects=count,
    )


def take_names():
    databases.empty_tables()
    workloads.take_the_name()


def table_far(quick):
    count, share = (600, 30) if quick else (200_000, 4_000)
    common = {
        "database": "far",
        "before": partial(saving.fill, count),
        "check": expect(share, "benchmarks_product", "price = 1"),
        "scale": count // share,
    }
    cells = [Cell(contender="plain loop", run=partial(saving.loop_over_rows, share), **common)]
    for options in ways("far"):
        run = partial(saving.map_rows, share, keep="failures", **options)
        cells += [Cell(contender="poolsave process", setting=setting(options), run=run, **common)]
    return Part(
        key="table_far",
        title=f"A table of {count:,} rows, 1 ms away",
        about='Every row of a queryset is changed and saved, with `keep="failures"`. Each does the first fiftieth of '
        "the rows, and its seconds are multiplied by fifty.",
        cells=cells,
        objects=count,
    )


def ways(database):
    common = {"workers": WORKERS[database], "transaction": "chunk"}
    return [common, {**common, "batch_writes": True}]
