"""Which combinations of parameters the default run leaves to CI.

A promise is proved once by the default run, and once with each value of each of its parameters. It does not try every
combination of databases, start methods, executors and modes: those are marked `exhaustive`. Executors that start fresh
interpreters are left to CI wherever others are tried too, and outside of the contract suite also those of other
libraries. Spawn is tried by those tests of the contract suite for which it differs from the fork server.
Whole programs (examples, the code of pages, suites of projects, benchmarks) are marked `programs`.
Audits under random kills and crashes, and inputs of a million objects, are in `slow`, and are CI's as well.
"""

from collections import defaultdict

import pytest
from hypothesis import settings

from tests.support.pools import EXECUTORS

STARTERS = {"address", "private_server", "stoppable_mariadb"}, {"test_dask.py", "test_unreachable_databases.py"}
"""Fixtures, and files of tests, that start a cluster of Dask's or a server besides those that all tests need."""
FRESH = {"process-pool", "ProcessPoolExecutor", "loky", "dask-threads"}
"""Executors that start fresh interpreters for every test, and a second cluster of Dask's."""
OWN = {"serial", "thread", "fork", "forkserver"}
"""Executors that the default run tries outside of the contract suite, which tries others as well."""
SPAWN_IS_FORKSERVER = {"test_behaviour.py", "test_unpicklable.py"}
"""Files of the contract suite in which a spawned worker does what one of the fork server does, and takes longer."""


thorough = False
"""Whether this run takes what is marked so. Set before the test modules are imported."""


def examples(number):
    """How many examples Hypothesis tries: all of them where all combinations are tried."""
    return number if thorough else max(8, number // 6)


def look_at(config):
    globals()["thorough"] = "not exhaustive" not in config.option.markexpr
    settings.register_profile("run", max_examples=examples(100), deadline=None)
    settings.load_profile("run")


def mark_exhaustive(items):
    tests = defaultdict(list)
    for item in items:
        tests[item.nodeid.partition("[")[0]].append(item)
    for group in tests.values():
        chosen = covering([item for item in group if not is_left_out(item)] or group[:1])
        if "unit" in group[0].path.parts:
            chosen = group
        if "slow" in group[0].path.parts:
            chosen = [item for item in group if item.get_closest_marker("chaos") or item.get_closest_marker("large")]
        for item in group:
            if item not in chosen:
                item.add_marker(pytest.mark.exhaustive)


def put_together(items):
    """Put those first that start more servers, and so into one of pytest-xdist's workers, or each starts its own."""
    items.sort(key=lambda item: not starts_servers(item))


def starts_servers(item):
    fixtures, files = STARTERS
    return not fixtures.isdisjoint(item.fixturenames) or item.path.name in files or "dask" in parameters(item).values()


def is_left_out(item):
    given = set(parameters(item).values())
    if "contract" in item.path.parts:
        return not given.isdisjoint(FRESH | ({"spawn"} if item.path.name in SPAWN_IS_FORKSERVER else set()))
    return not given.isdisjoint(EXECUTORS.keys() - OWN)


def is_slow(item):
    """Whether it is the last one to be chosen of those that cover the same."""
    return not {"spawn", "dask", "mariadb"}.isdisjoint(parameters(item).values())


def covering(items):
    """A few of them in which every value of every parameter occurs."""
    if len(items) == 1:
        return items
    chosen, covered, left = [], set(), {item: values(item) for item in sorted(items, key=is_slow)}
    while left:
        best = max(left, key=lambda item: len(left[item] - covered))
        if chosen and not left[best] - covered:
            break
        chosen.append(best)
        covered |= left.pop(best)
    return chosen


def values(item):
    """One of every parameter; those that are given together are one."""
    given = dict(item.callspec.params) if hasattr(item, "callspec") else {}
    together = [names_of(mark) for mark in item.iter_markers("parametrize")]
    alone = [(name,) for name in given.keys() - {name for names in together for name in names}]
    return {(names, *(id(given[name]) for name in names if name in given)) for names in [*together, *alone]}


def names_of(mark):
    names = mark.args[0] if mark.args else mark.kwargs["argnames"]
    return tuple(name.strip() for name in names.split(",")) if isinstance(names, str) else tuple(names)


def parameters(item):
    given = item.callspec.params if hasattr(item, "callspec") else {}
    return {name: value for name, value in given.items() if isinstance(value, str)}
