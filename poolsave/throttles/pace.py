"""`Pace`: so many objects per second."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import InvalidOption


@dataclass(frozen=True, slots=True, repr=False)
class Pace:
    """At most so many objects per second, of all workers of a run together: `Pace(500)`.

    Objects are counted when they go out to a worker. A chunk of a fixed `chunksize` goes out whole, and the next one
    when the time of its objects has passed. Automatic chunks are small enough for ten of them a second. A pipeline is
    paced at its input.

    Raises:
        InvalidOption: if that is no number above 0.
    """

    objects: float
    """Per second; below 1 an object takes longer."""

    def __post_init__(self) -> None:
        given = self.objects
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < math.inf:
            raise InvalidOption("objects", given, "give a number of objects per second above 0, as in Pace(500)")

    def __call__(self) -> None:
        """Say nothing: a pace is kept by counting objects, and not by the share of workers."""

    def __repr__(self) -> str:
        return f"Pace({self.objects!r})"
