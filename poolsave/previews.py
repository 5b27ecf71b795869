"""What a dry run shows: the rows that would change, and what was caught, as values. `op.dry_run()` makes them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from ._reports.causes import format_cause, printable
from ._runtime.foreign_exceptions import repr_of
from .outcomes import Outcome

__all__ = ["Change", "Preview"]

CAUSES_SHOWN = 5
"""Causes that `str(preview)` lists, the most frequent first."""
VALUE_WIDTH = 40
"""Characters of a value that `str(preview)` shows: two of them and a name fit into a line."""
FIELDS_SHOWN = 5
"""Fields of a row that `str(preview)` shows."""


@dataclass(frozen=True, slots=True)
class Change:
    """What would become of one row of one table, from before the dry run to its end.

    A row that several samples write is one change. A row that is created and deleted again is none. In multi-table
    inheritance the parent's row is a change of its own, with the parent as `model`; a row of a many-to-many relation is
    one of its `through` model.
    """

    model: Any
    """The model class whose table it is; never a proxy."""
    pk: Any
    """The row's primary key; a tuple if that is composite. Of a created row it is that of the dry run."""
    action: Literal["create", "update", "delete"]
    """What would happen to the row."""
    fields: dict[str, tuple[Any, Any]]
    """The values before and after, as the database had them, by the field's `attname` ("owner_id"). Of an update those
    that differ; of a created or deleted row all, with None for what is not there."""
    database: str = field(default="default", compare=False, kw_only=True)
    """The alias of its database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a run would do, seen on a few samples, of which nothing is left. `print(preview)` shows it."""

    changes: list[Change]
    """All rows that would change, those that receivers write included, in the order of their first write. Each is read
    from the database before its first write and after the last sample. Not seen: what triggers write, and cascades of
    the database that no model knows of."""
    other_writes: dict[str, int]
    """How many rows statements past the ORM (`cursor.execute()`) would write, by table. A statement for which the
    driver does not tell counts as one. What bypasses Django's cursors is rolled back, but not counted."""
    callbacks: int
    """How many `on_commit` callbacks the successful samples have registered. None was called."""
    mail: int
    """How many messages were given to Django's mail backends. None was sent."""
    tasks: int
    """How many tasks were enqueued by `django.tasks`, which Django has from 6.0. None was enqueued."""
    errors: dict[tuple[str, str | None], list[Outcome[Any]]]
    """The samples that would fail, by the class of their error and its SQLSTATE, as `Report.by_cause()` gives them."""
    samples: int
    """How many objects were tried."""
    succeeded: int
    """How many of the samples would succeed. In a pipeline: how many values came out at its end."""
    dropped: int
    """How many of the samples a stage of a pipeline would end by `DROP`."""
    skipped: int
    """How many rows would be skipped, since an earlier sample has deleted or changed them."""
    total: int | None
    """How many objects the whole input has; None for an iterator that goes on after the samples. Above 100,000 rows the
    server estimates it."""
    seconds_per_object: float
    """The mean time of a sample in one worker, without COMMIT and without what the dry run itself took."""
    estimate: float | None
    """The least seconds that a run over the whole input would take, without COMMITs: `total` times
    `seconds_per_object`, divided by the number of workers where they can write side by side (not on SQLite). None if
    `total` is unknown."""
    workers: int
    """By how many workers `estimate` divides."""
    chosen: str
    """Which objects were tried, in words."""
    of_rows: bool
    """Whether the objects are rows of a queryset."""
    sequences_moved: bool
    """Whether sequences may have moved on: PostgreSQL and MariaDB do not give keys back when rows are rolled back."""

    @property
    def ok(self) -> bool:
        """Whether no sample failed."""
        return not self.errors

    def __str__(self) -> str:
        return printable("\n".join(_lines(self)))

    def __repr__(self) -> str:
        failed = sum(map(len, self.errors.values()))
        return f"<Preview samples={self.samples} failed={failed} changes={len(self.changes)}>"


def _lines(preview: Preview) -> Iterator[str]:
    failed = sum(map(len, preview.errors.values()))
    also = "".join(f", {count} would be {what}" for count, what in _rare(preview) if count)
    results = f"{preview.succeeded} would succeed, {failed} would fail{also}"
    yield f"dry run of {preview.chosen}: {results}; nothing was saved"
    causes = list(preview.errors.items())
    for cause, failures in causes[:CAUSES_SHOWN]:
        yield from format_cause(cause, len(failures), failures[0], of_rows=preview.of_rows)
    if len(causes) > CAUSES_SHOWN:
        yield f"  and {len(causes) - CAUSES_SHOWN} more causes"
    yield from _change_lines(preview.changes)
    yield from (f"  past the ORM: {_count(rows, 'row')} of {table}" for table, rows in preview.other_writes.items())
    yield from _caught_lines(preview)
    if preview.samples:
        yield _time_line(preview)
    if preview.sequences_moved:
        yield "  not undone: sequences have moved on, as after every rollback"


def _rare(preview: Preview) -> Iterator[tuple[int, str]]:
    yield preview.dropped, "dropped"
    yield preview.skipped, "skipped"


def _change_lines(changes: list[Change]) -> Iterator[str]:
    groups: dict[tuple[Any, str, str], list[Change]] = defaultdict(list)
    for change in changes:
        groups[change.model, change.action, change.database].append(change)
    if not groups:
        yield "  no row would change"
    for (model, action, _database), same in groups.items():
        yield f"  would {action} {_count(len(same), 'row')} of {model._meta.label}, such as {_described(same[0])}"


def _described(change: Change) -> str:
    shown = [_field(name, *values, change.action) for name, values in change.fields.items()]
    more = ["..."] if len(shown) > FIELDS_SHOWN else []
    return f"{repr_of(change.pk)}: {', '.join([*shown[:FIELDS_SHOWN], *more])}"


def _field(name: str, before: Any, after: Any, action: str) -> str:
    if action == "update":
        return f"{name} {_short(before)} -> {_short(after)}"
    return f"{name} {_short(after if action == 'create' else before)}"


def _short(value: Any) -> str:
    text = repr_of(value)
    return text if len(text) <= VALUE_WIDTH else f"{text[: VALUE_WIDTH - 3]}..."


def _caught_lines(preview: Preview) -> Iterator[str]:
    caught = ((preview.callbacks, "on_commit callback"), (preview.mail, "mail"), (preview.tasks, "task"))
    counts = [_count(count, name) for count, name in caught if count]
    if counts:
        yield f"  caught and not run: {', '.join(counts)}"


def _time_line(preview: Preview) -> str:
    per_object = f"{_duration(preview.seconds_per_object)} per object"
    if preview.estimate is None or preview.total is None:
        return f"  time: {per_object}"
    whole = f"{_count(preview.total, 'row' if preview.of_rows else 'object')}"
    least = f"at least {_duration(preview.estimate)} for {whole} in {_count(preview.workers, 'worker')}"
    return f"  time: {least}, without COMMITs; {per_object}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    if seconds < 0.000_001:
        return "less than 0.001 ms"
    number, unit = (seconds, "s") if seconds >= 1 else (seconds * 1000, "ms")
    return f"{number:.0f} {unit}" if number >= 10 else f"{number:.2g} {unit}"
