"""A whole run: parts one after the other, and what was found as plain data."""

import datetime as dt
import os
import platform
import sys

import django

from tests.benchmarks import catalogue, databases, measuring, parts, workloads


def run(arguments):
    chosen = [name for name in arguments.only.split(",") if name] or list(catalogue.PARTS)
    if unknown := set(chosen) - set(catalogue.PARTS):
        sys.exit(f"there is no part {min(unknown)!r}, only {', '.join(catalogue.PARTS)}")
    load = os.getloadavg()[0]  # that of others: what comes now is this run's own
    workloads.calibrate()
    for kind in ("sqlite", "sqlite_default", "postgres"):
        cell = measuring.Cell(contender="nobody", run=None, database=kind, before=databases.make_tables)
        measuring.must(measuring.prepare, cell)
    measuring.load_what_they_need(catalogue.tried_first())
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    return {
        "measured_on": measured_on(rounds, load),
        "parts": [measured(catalogue.PARTS[name](arguments.quick), rounds) for name in chosen],
    }


def measured(part, rounds):
    print(part.title, flush=True)
    rounds = min(rounds, part.rounds or rounds)
    told = ("key", "title", "about", "unit", "per", "baseline", "figure", "by_case", "objects")
    about = {name: getattr(part, name) for name in told}
    if part.cells[0].database == "far":
        trip = measuring.must(round_trip, part.cells[0])
        about["about"] += f" `SELECT 1` takes {trip['milliseconds']:.2f} ms there."
    measuring.alternate(part.cells, rounds)
    return {**about, "rounds": rounds, "cells": [cell.figures() for cell in part.cells]}


def round_trip(cell):
    databases.choose(cell.database)
    return databases.round_trip()


def measured_on(rounds, load):
    versions = measuring.must(lambda _cell: databases.versions(), measuring.Cell(contender="nobody", run=None))
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "CPUs": f"{parts.CPUS} x {cpu_model()}",
        "load before": f"{load:.1f}",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "Django": django.__version__,
        **versions,
        "start method": "fork, unless another one is named",
        "rounds": rounds,
    }


def cpu_model():
    """As Linux tells it; elsewhere what Python knows."""
    try:
        with open("/proc/cpuinfo") as told:
            return next(line.partition(":")[2].strip() for line in told if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
