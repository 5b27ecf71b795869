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
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import compress
from typing import Any

_of_fork_server: list[object] = []
"""Generators that were found in the fork server."""
_reseeded: dict[int, list[object]] = {}
"""By process id, the generators that were reseeded there. They are kept alive, so that their ids stay unique."""


class Marker:
    """An object that was made right before a search."""


_last: tuple[Marker, Sequence[Callable[[], object]]] = Marker(), ()
"""That of the last search before a fork, and references to the generators that were found."""


def find_before_fork() -> list[object] | None:
    """Find the generators, some of them twice. In the children the search would copy all memory pages.

    None: objects are frozen, and the children have to look for them. A search takes milliseconds, so the last one
    counts as long as its marker is young: the garbage collector moves whole generations, and what was made after the
    marker is young then, too.
    """
    global _last  # noqa: PLW0603  there is one heap in a process
    if gc.get_freeze_count():
        return None
    young = _young_objects()
    marker, references = _last
    if id(marker) in map(id, young):
        known = [value for reference in references if (value := reference()) is not None]
        kinds = _kinds()
        return known if kinds.isdisjoint(map(type, young)) else known + _generators_among(young, kinds)
    marker = Marker()  # before the search: what another thread makes meanwhile is younger
    found = find_generators()
    _last = marker, [*map(_reference, found)]
    return found


def find_generators() -> list[object]:
    """Find the generators among all objects that are not frozen."""
    kinds = _kinds()
    # Every instance of a class that is written in Python holds a reference to it. This takes half the time. An
    # unchanged count of these references says nothing: a generator may have come as another one died.
    return _generators_among(gc.get_objects() if [*_numpy_kinds()] else gc.get_referrers(*kinds), kinds)


def _generators_among(objects: list[Any], kinds: set[type]) -> list[object]:
    # type() and not isinstance(), which reads `__class__` and so evaluates lazy objects.
    # A usual process has 100,000 objects. Without a line of Python for each, it takes a third of the time.
    return [*compress(objects, map(kinds.__contains__, map(type, objects)))]


def _young_objects() -> list[Any]:
    first = gc.get_objects(0)
    # CPython 3.14 collects all others in parts. A list that is built of both would be among its own objects, and keep
    # them alive.
    return first if sys.version_info >= (3, 14) else first + gc.get_objects(1)


def _reference(generator: object) -> Callable[[], object]:
    try:
        return weakref.ref(generator)
    except TypeError:  # of numpy, which is small
        return lambda: generator


def remember_generators() -> None:
    """Find them in the fork server, for all workers that it forks."""
    _of_fork_server[:] = find_generators()


def is_seeded() -> bool:
    """Whether `reseed_generators` has run in this process."""
    return os.getpid() in _reseeded


def reseed_generators(inherited: Iterable[object] | None = ()) -> None:
    """Reseed, in a worker process, the generators that were not reseeded here.

    `inherited`: what `find_before_fork` has given."""
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


def _kinds() -> set[type]:
    kinds = {kind for base in (random.Random, *_numpy_kinds()) for kind in _with_subclasses(base)}
    return kinds.difference(_with_subclasses(random.SystemRandom))  # which has no state


def _numpy_kinds() -> Iterator[type]:
    numpy: Any = sys.modules.get("numpy.random")
    if numpy is not None:
        yield from (numpy.RandomState, numpy.BitGenerator)


def _with_subclasses(kind: type) -> Iterator[type]:
    yield kind
    subclasses: list[type] = type.__subclasses__(kind)
    for subclass in subclasses:
        yield from _with_subclasses(subclass)
