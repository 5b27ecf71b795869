"""Failures in words: the key that they are grouped by, the chain of errors behind one, and lines of a report.

Reports and pipelines call it. What an error means for a retry is not decided here but in `_db.error_codes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .._db.error_codes import sqlstate_of
from .._runtime.foreign_exceptions import add_note, attribute_of, cause_of, class_name_of, is_a, repr_of, text_of
from ..errors import RemoteError
from ..outcomes import Outcome

WIDTH = 300
"""Characters of an error's first line that a report shows: more would wrap over many lines of a terminal."""
ITEM_WIDTH = 80
"""Characters of an item's repr that a report shows."""
NOTE_START = "poolsave: "
PICKLING_NOTE = f"{NOTE_START}this is about "
"""How a note begins that says what could not be pickled (`_pickling.values`)."""
MAX_CAUSES = 100
"""Causes that are counted apart. A program that makes a class for each error would have as many as failures."""
OTHER_CAUSES = ("other errors", None)
"""What further causes are counted as."""

Cause = tuple[str, str | None]
"""The name of an error's class, and its SQLSTATE."""


def printable(text: str) -> str:
    """Escape what UTF-8 cannot encode: half of a surrogate pair (from an undecodable file name) becomes its number."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def exception_chain(error: BaseException | None) -> Iterator[BaseException]:
    """Give an error, the error that it was raised from, and so on, each of them once."""
    seen: list[BaseException] = []  # `raise error from error` is allowed, and errors may lack a hash
    while error is not None and not any(error is earlier for earlier in seen):
        yield error
        seen.append(error)
        error = cause_of(error)


def error_key(error: BaseException | None) -> Cause:
    if is_a(error, RemoteError):
        return error.class_path.rpartition(".")[2], error.sqlstate
    return class_name_of(error), None if error is None else sqlstate_of(error)


class CauseCounts:
    """How many failures each cause has, and the first failure of each in the order of the input."""

    def __init__(self) -> None:
        self._counts: dict[Cause, int] = {}
        self.unseen: list[Cause] = []
        """Causes that nothing has been logged of."""
        self._first: dict[Cause, tuple[tuple[int, tuple[int, ...]], Outcome[Any]]] = {}

    def add(self, outcome: Outcome[Any], path: tuple[int, ...]) -> None:
        """Count a failure. `path`: see `OutcomeBatch.path`."""
        cause = error_key(outcome.error)
        if cause not in self._counts and len(self._counts) >= MAX_CAUSES:
            cause = OTHER_CAUSES
        if cause not in self._counts:
            self.unseen.append(cause)
        self._counts[cause] = self._counts.get(cause, 0) + 1
        order = (outcome.index, path)
        if cause not in self._first or order < self._first[cause][0]:
            self._first[cause] = order, outcome

    def as_dict(self) -> dict[Cause, int]:
        """Give the counts, the largest first; equal ones in the order of the input."""
        return dict(sorted(self._counts.items(), key=lambda count: (-count[1], self._first[count[0]][0])))

    def first(self, cause: Cause) -> Outcome[Any]:
        """Give the first failure of a cause."""
        return self._first[cause][1]


def format_cause(cause: Cause, count: int, first: Outcome[Any], *, of_rows: bool) -> Iterator[str]:
    """Give the lines of a report about a cause: its first failure, and what that is about if pickling raised it."""
    lines = ("" if first.error is None else text_of(first.error)).strip().splitlines()
    text = _shorten(lines[0], WIDTH) if lines else ""
    key = _key(first.item, of_rows=of_rows) or f" ({_shorten(repr_of(first.item), ITEM_WIDTH)})"
    yield f"  {count:>8} x {format_error_key(cause)}, first at index {first.index}{key}: {text}"
    notes = attribute_of(first.error, "__notes__")
    for note in notes if type(notes) is list else ():
        if type(note) is str and note.startswith(PICKLING_NOTE):
            yield f"  {'':>8}   {note.removeprefix(NOTE_START)}"


def _shorten(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[:width]}..."


def format_error_key(cause: Cause) -> str:
    name, state = cause
    return f"{name} [{state}]" if state else name


def _key(item: Any, *, of_rows: bool) -> str:
    return f" (pk {repr_of(item)})" if of_rows else ""


def with_location_note(outcome: Outcome[Any], *, of_rows: bool) -> BaseException:
    error = outcome.error
    assert error is not None  # failed and lost outcomes always have one
    add_note(error, f"poolsave: object {outcome.index}{_key(outcome.item, of_rows=of_rows)}, {outcome.status}")
    return error
