"""`Run`: what makes a run durable, so that it can be stopped anywhere and goes on exactly there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import InvalidOption

__all__ = ["Run"]

LONGEST_NAME = 200
"""Characters of a run's name, as its column has them."""


@dataclass(frozen=True, slots=True)
class Run:
    """A durable run, by its name: `op.map(rows, run=Run("articles-slug"))`, or `run="articles-slug"` for short.

    The app "poolsave.ledger" keeps it. The first `map` with the name starts it, later ones go on where it stopped, and
    when it is finished they run nothing.

    Example:
        >>> Run("articles-slug", stale_after=30).name
        'articles-slug'
        >>> Run("")
        Traceback (most recent call last):
        ...
        poolsave.errors.InvalidOption: run='' is not valid: give a name of 1 to 200 characters
    """

    name: str
    key: Callable[[Any], str | int] | None = None
    """For an input that is not a queryset: gives the key of an object, a text or a whole number that no other object
    has. It is called in the caller."""
    using: str | None = None
    """The alias of the ledger's database. None: that of the data, if routers allow the ledger's tables there."""
    exactly_once: bool | None = None
    """True: refuse a run that cannot promise it, since the ledger's row is not in the transaction of the work."""
    stale_after: float = 60.0
    """Seconds without a heartbeat after which another process may take the run over."""
    fresh: bool = False
    """Forget what is done, and begin anew."""
    started_by: str = ""
    """Who has started it, for people."""
    slice: float | None = None
    """Seconds after which the session makes room for others: the run is paused then, with "slice". None: never."""
    only_due: bool = False
    """Refuse a run that is not due: for a process that begins what others have asked for."""
    retry: Mapping[str, Any] | None = None
    """Try failures again, and do nothing else: {} for all of them, or {"cause": ..., "since": ..., "keys": ...}."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= LONGEST_NAME:
            raise InvalidOption("run", self.name, f"give a name of 1 to {LONGEST_NAME} characters")
        if self.key is not None and not callable(self.key):
            raise InvalidOption("key", self.key, "give a callable that takes an object, or None")
        if isinstance(self.stale_after, bool) or not self.stale_after > 0:
            raise InvalidOption("stale_after", self.stale_after, "give seconds, a number above 0")
        if self.slice is not None and (isinstance(self.slice, bool) or not self.slice > 0):
            raise InvalidOption("slice", self.slice, "give seconds, a number above 0, or None")


def as_run(value: str | Run) -> Run:
    """Give the run that the option names."""
    return value if isinstance(value, Run) else Run(value)
