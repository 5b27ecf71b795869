"""`Run`: what makes a run durable, so that it can be stopped anywhere and goes on exactly there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.utils import timezone

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
    """Seconds without a heartbeat after which another process may take the run over. Ten times as long if it sees,
    on the same machine, that the process is running."""
    fresh: bool = False
    """Forget what is done, and begin anew."""
    started_by: str = ""
    """Who has started it, for people."""
    slice: float | None = None
    """Seconds after which the session makes room for others: the run is paused then, with "slice". None: never.

    At least one chunk is done, however short the slice.
    """
    only_due: bool = False
    """Refuse a run that is not due: for a process that begins what others have asked for."""
    retry: Mapping[str, Any] | None = None
    """Try failures again, and do nothing else: {} for all of them, or a dictionary with any of "cause" (a class, a
    SQLSTATE, a constraint), "since" (a datetime, or a timedelta back from now), "keys" (as `Failure.key` has them) and
    "limit"."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= LONGEST_NAME:
            raise InvalidOption("run", self.name, f"give a name of 1 to {LONGEST_NAME} characters")
        if not _can_be_stored(self.name):
            raise InvalidOption("run", self.name, "give a name without NUL and halves of surrogate pairs")
        if self.key is not None and not callable(self.key):
            raise InvalidOption("key", self.key, "give a callable that takes an object, or None")
        if not _is_positive(self.stale_after):
            raise InvalidOption("stale_after", self.stale_after, "give seconds, a number above 0")
        if self.slice is not None and not _is_positive(self.slice):
            raise InvalidOption("slice", self.slice, "give seconds, a number above 0, or None")
        if self.retry is not None:
            object.__setattr__(self, "retry", _checked_retry(self.retry))


def _can_be_stored(text: str) -> bool:
    return "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _checked_retry(retry: object) -> dict[str, Any]:
    """Give it as the ledger stores it."""
    if not isinstance(retry, Mapping) or not retry.keys() <= RETRY.keys():
        raise InvalidOption("retry", retry, f"give a dictionary with any of {', '.join(map(repr, RETRY))}")
    given = {name: value for name, value in retry.items() if value is not None}
    for name, value in given.items():
        checked = RETRY[name]
        given[name] = checked(value)
    return given


def _checked_cause(cause: object) -> str:
    if not isinstance(cause, str):
        raise InvalidOption("retry", cause, "give as cause a class, a SQLSTATE, a constraint or a whole cause, as text")
    return cause


def _checked_since(since: object) -> str:
    """Give it in ISO format, with a time zone if USE_TZ is on."""
    moment = since
    if isinstance(since, timedelta):
        moment = timezone.now() - since
    elif isinstance(since, str):
        try:
            moment = datetime.fromisoformat(since)
        except ValueError:
            moment = None
    if not isinstance(moment, datetime):
        raise InvalidOption("retry", since, "give as since a datetime, its ISO text, or a timedelta back from now")
    if settings.USE_TZ and timezone.is_naive(moment):
        moment = timezone.make_aware(moment)
    return moment.isoformat()


def _checked_keys(keys: object) -> list[str]:
    if isinstance(keys, str | bytes) or not isinstance(keys, Iterable):
        raise InvalidOption("retry", keys, "give as keys a list, as Failure.key has them, such as ['17', '18']")
    given = list(keys)
    if not all(isinstance(key, str | int) and not isinstance(key, bool) for key in given):
        raise InvalidOption("retry", keys, "give as keys texts, as Failure.key has them, or whole numbers")
    return [str(key) for key in given]


def _checked_number(number: object) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise InvalidOption("retry", number, "give as limit and upto whole numbers above 0")
    return number


RETRY: dict[str, Callable[[object], Any]] = {
    "cause": _checked_cause,
    "since": _checked_since,
    "keys": _checked_keys,
    "limit": _checked_number,
    "upto": _checked_number,
}


def as_run(value: str | Run) -> Run:
    """Give the run that the option names."""
    return value if isinstance(value, Run) else Run(value)
