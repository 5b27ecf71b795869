"""Each measurement in a forked process of its own, so that none can disturb the next one."""

import gc
import importlib
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median

import psutil

from tests.benchmarks import databases
from tests.benchmarks.contenders import NotAvailable

FORK = multiprocessing.get_context("fork")
PATIENCE = 300
"""Seconds after which a contender that hangs is given up."""


def no_preparation():
    """Nothing has to be there before."""


@dataclass(kw_only=True)
class Cell:
    """One contender with one setting in one case, and what was measured of it."""

    contender: str
    run: Callable[[], object]
    case: str = ""
    setting: str = ""
    database: str = "postgres"
    before: Callable[[], object] = no_preparation
    warm_up: Callable[[], object] | None = None
    """Run once in the same process, before the clock."""
    times: int = 1
    """Runs in that process, of which the median is told, for what is over before a clock can tell it from noise."""
    between: Callable[[], object] = no_preparation
    """Makes all as it was for the next of them, outside the clock."""
    check: Callable[[], object] = no_preparation
    """Says, by an exception, that the contender did not do all of its work."""
    scale: float = 1
    """Seconds are multiplied by it; it is more than 1 for what does only a part of the work."""
    values: list[float] = field(default_factory=list)
    grown: list[float] = field(default_factory=list)
    """By how many MB the process that called the contender grew; its workers are not counted."""
    cpu: list[list[float]] = field(default_factory=list)
    """CPU seconds of the caller, its workers and the server: they depend less on what else the machine does."""
    note: str = ""
    """Why there are no values."""

    def figures(self):
        told = ("contender", "setting", "case", "scale", "values", "grown", "cpu", "note")
        return {name: getattr(self, name) for name in told}


def alternate(cells, rounds, said=print):
    """Measure every cell once per round, so that what else the machine does meets them alike."""
    for number in range(1, rounds + 1):
        for cell in cells:
            if not cell.note:
                measure(cell)
                last = cell.note or f"{cell.values[-1]:.3f} s"
                said(f"  {number}/{rounds}  {cell.case:12} {cell.contender:26} {cell.setting:40} {last}", flush=True)


def measure(cell):
    must(prepare, cell)
    found = in_own_process(_run, cell)
    if "error" not in found:
        found |= in_own_process(_check, cell)
    if "error" in found:
        cell.note = found["error"]
    else:
        cell.values.append(found["seconds"] * cell.scale)
        cell.grown.append(found["grown"])
        cell.cpu.append([seconds * cell.scale for seconds in found["cpu"]])


def must(function, cell):
    """Do in a process of its own what is no contender's, so that it has to work."""
    found = in_own_process(function, cell)
    if "error" in found:
        raise RuntimeError(f"{function.__name__} for {cell.contender!r} {found['error']}")
    return found


def load_what_they_need(cells):
    """Import here what contenders import when they run, so that no import is in the clock, of whomever."""
    for cell in cells:
        found = in_own_process(_try, cell)
        for name in found.get("modules", ()):
            with suppress(ImportError):  # such as modules that somebody made at run time
                importlib.import_module(name)


def _try(cell):
    databases.choose(cell.database)
    before = set(sys.modules)
    cell.run()
    return {"modules": sorted(set(sys.modules) - before - {"__main__", "__mp_main__"})}


def prepare(cell):
    databases.choose(cell.database)
    cell.before()
    return {}


def _check(cell):
    databases.choose(cell.database)
    cell.check()
    return {}


def _run(cell):
    databases.choose(cell.database)
    if cell.warm_up:
        cell.warm_up()
    gc.collect()
    before, used = psutil.Process().memory_info().rss, cpu_seconds()
    seconds = [_timed(cell)]
    cpu = [now - then for now, then in zip(cpu_seconds(), used, strict=True)]
    while len(seconds) < cell.times:
        cell.between()
        seconds.append(_timed(cell))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": median(seconds), "grown": max(0.0, (peak - before) / 2**20), "cpu": cpu}


def cpu_seconds():
    """Of this process, of its children that have ended, and of the server."""
    own = os.times()
    server = psutil.Process(databases.postmaster())
    processes = [server, *server.children()]
    times = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # a session that has ended meanwhile: the server has its times
            times.append(process.cpu_times())
    ended = times[0].children_user + times[0].children_system
    served = ended + sum(one.user + one.system for one in times)
    return own.user + own.system, own.children_user + own.children_system, served


def _timed(cell):
    began = time.perf_counter()
    cell.run()
    return time.perf_counter() - began


def in_own_process(function, cell):
    """What the function gave, or `error`; whatever is still alive of it afterwards is ended."""
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_tell, args=(function, cell, sender))
    process.start()
    sender.close()
    try:
        found = receiver.recv() if receiver.poll(PATIENCE) else {"error": f"hung for {PATIENCE} s"}
    except EOFError:
        found = {"error": "failed: its process died"}
    _end(process)
    return found


def _tell(function, cell, sender):
    os.setsid()  # so that all processes of a contender can be ended together
    try:
        found = function(cell)
    except NotAvailable as reason:
        found = {"error": str(reason)}
    except Exception as error:
        found = {"error": f"failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
    sender.send(found)


def _end(process):
    """Let it leave by itself, and if it cannot, end it and what it has started."""
    process.join(10)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # nothing of it is left, which is how it should be
    process.join()
    process.close()
