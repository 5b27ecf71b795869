"""What a part of a run is, and how the cells that are measured in it are made."""

import os
from dataclasses import dataclass
from functools import partial

from tests.benchmarks import contenders, databases
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
    figure: str = "values"
    """Which of a cell's figures are told: `values` (seconds) or `grown` (MB)."""
    by_case: bool = False
    """Told with a line per case and a column per contender."""
    objects: int = 0
    """If it is not 0, CPU time is told per object, of so many."""
    rounds: int | None = None
    """At most so many rounds; None: as many as asked for."""


def setting(options):
    """What is not the same for all: without progress, and the number of workers where it is that of the CPUs."""
    usual = {"progress": options.get("progress"), "workers": CPUS}
    return ", ".join(f"{name}={value}" for name, value in options.items() if (name, value) not in usual.items())


def peer(name, run, function, objects, options=None, **cell):
    options = options or {}
    return Cell(contender=name, setting=setting(options), run=partial(run, function, objects, **options), **cell)


def ours(function, objects, options, **cell):
    shown = {key: value for key, value in options.items() if key != "executor"}
    executor = options.get("executor", "process")
    run = partial(contenders.with_poolsave, function, objects, **options)
    return Cell(contender=f"poolsave {executor}", setting=setting(shown), run=run, **cell)


def expect(wanted, table, where="true"):
    def check():
        found = databases.count(table, where)
        if found != wanted:
            raise ValueError(f"{found} rows in {table}, expected {wanted}")

    return check
