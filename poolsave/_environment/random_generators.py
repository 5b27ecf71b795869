"""Reseeds generators of random numbers in a worker process.

A worker has them in the state of its parent or of their module, so that every worker would draw the same numbers. In a
forked child Python reseeds its own `random` only, and not those of Faker, factory_boy, mimesis and numpy. They are
found among the objects that the garbage collector tracks. `_worker/job.py` calls this.
"""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import compress
from typing import Any

_of_fork_server: list[object] = []
"""Generators that were found in the fork server."""
_reseeded: dict[int, list[object]] = {}
"""By process id, the generators that were reseeded there. They are kept alive, so that their ids stay unique."""


def find_generators() -> list[object]:
    """Find the generators before a fork. In the children the search would copy all memory pages."""
    numpy_kinds = [*_numpy_kinds()]
    if numpy_kinds:
        # type() and not isinstance(), which reads `__class__` and so evaluates lazy objects.
        # A usual process has 100,000 objects. Without a line of Python for each, it takes a third of the time.
        kinds = {kind for base in (random.Random, *numpy_kinds) for kind in _with_subclasses(base)}
        objects = gc.get_objects()
        return [*compress(objects, map(kinds.__contains__, map(type, objects)))]
    kinds = {*_with_subclasses(random.Random)}
    # Every instance of a class that is written in Python holds a reference to it. This takes half the time. An
    # unchanged count of these references says nothing: a generator may have come as another one died.
    return [value for value in gc.get_referrers(*kinds) if type(value) in kinds]


def remember_generators() -> None:
    """Find them in the fork server, for all workers that it forks."""
    _of_fork_server[:] = find_generators()


def is_seeded() -> bool:
    """Whether `reseed_generators` has run in this process."""
    return os.getpid() in _reseeded


def reseed_generators(inherited: Iterable[object] | None = ()) -> None:
    """Reseed, in a worker process, the generators that were not reseeded here. None: search frozen objects too."""
    if inherited is None:
        gc.unfreeze()
        inherited = find_generators()
        gc.freeze()
    done = _reseeded.setdefault(os.getpid(), [])
    known = {*map(id, done)}
    new = [value for value in (*inherited, *_of_fork_server, *find_generators()) if id(value) not in known]
    for generator in new:
        with suppress(Exception):  # a subclass without such state keeps the one that it has
            _reseed(generator)
    done += new


def _reseed(generator: Any) -> None:
    if isinstance(generator, random.Random):
        random.Random.seed(generator)  # not by a subclass's own method, which may take other arguments
    elif hasattr(generator, "get_state"):  # numpy's RandomState, which stores one more number beside its bit generator
        generator.set_state({**generator.get_state(legacy=False), "has_gauss": 0})
    else:
        generator.state = type(generator)().state


def _numpy_kinds() -> Iterator[type]:
    numpy: Any = sys.modules.get("numpy.random")
    if numpy is not None:
        yield from (numpy.RandomState, numpy.BitGenerator)


def _with_subclasses(kind: type) -> Iterator[type]:
    yield kind
    subclasses: list[type] = type.__subclasses__(kind)
    for subclass in subclasses:
        yield from _with_subclasses(subclass)
