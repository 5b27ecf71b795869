"""Generators of random numbers in a worker process, which has them with the state that its parent or their module gave
them: every worker would draw the same numbers.

Python seeds its own `random` anew in a forked child, and knows of no other one, such as those of Faker, factory_boy,
mimesis and numpy. They are found among the objects that the garbage collector knows.
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
_reseeded: dict[int, list[object]] = {}
"""By process, those that have a new seed; they are kept, so that their ids stay theirs."""


def find_generators() -> list[object]:
    """In a process that is about to fork: what its children must seed, who would copy all memory by looking for it."""
    kinds = {kind for base in (random.Random, *_numpy_kinds()) for kind in _with_subclasses(base)}
    # type() and not isinstance(): the latter asks lazy objects for their __class__, which evaluates them.
    # There are 100,000 objects in a usual process: without a line of Python for each, it takes a third of the time.
    objects = gc.get_objects()
    return [*compress(objects, map(kinds.__contains__, map(type, objects)))]


def remember_generators() -> None:
    """In the fork server: find them for all workers that it forks."""
    _of_fork_server[:] = find_generators()


def is_seeded() -> bool:
    """Whether this process has been through `reseed_generators` before."""
    return os.getpid() in _reseeded


def reseed_generators(inherited: Iterable[object] | None = ()) -> None:
    """In a worker process: give those a new seed that have not got one here. None: look among frozen objects, too."""
    if inherited is None:
        gc.unfreeze()
        inherited = find_generators()
        gc.freeze()
    done = _reseeded.setdefault(os.getpid(), [])
    known = {*map(id, done)}
    new = [found for found in (*inherited, *_of_fork_server, *find_generators()) if id(found) not in known]
    for generator in new:
        with suppress(Exception):  # of a subclass that has no such state; it is no worse off than before
            _reseed(generator)
    done += new


def _reseed(generator: Any) -> None:
    if isinstance(generator, random.Random):
        random.Random.seed(generator)  # past a subclass whose own method expects something else
    elif hasattr(generator, "get_state"):  # numpy's RandomState, which has a number in store beside its bit generator
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
