"""A run in words and columns, as `manage.py poolsave` prints it. For display only: nothing is decided by it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder

from . import _progress as progress
from .causes import CauseCount
from .holders import describe
from .models import Failure, Run

COLUMNS = (
    "name", "status", "stop_code", "done", "failed", "skipped", "total", "came_later", "exactly_once", "seconds",
    "rate", "started_by", "holder", "started_at", "heartbeat_at", "ended_at", "throttle", "stop_reason",
)  # fmt: skip
"""Columns of a run, in the order of `--plain`, with the seconds that are left behind the rate."""
ASKED_FOR = ("operator", "slice")
"""Stop codes of a run that someone has paused, or that has made room for others."""


def figures(run: Run) -> dict[str, Any]:
    """Give what there is to know of a run, by name."""
    values = {name: getattr(run, name) for name in COLUMNS}
    left = progress.remaining(run)
    position = COLUMNS.index("rate") + 1
    pairs = list(values.items())
    pairs.insert(position, ("seconds_left", None if left is None else round(left.total_seconds())))
    return dict(pairs)


def no_run(name: str) -> dict[str, Any]:
    """Give the same of a backfill that has no run."""
    return {**dict.fromkeys(figures(Run())), "name": name, "status": "not started"}


def as_json(value: Any, *, indent: int | None) -> str:
    """Give JSON; times are in ISO format."""
    return json.dumps(value, cls=DjangoJSONEncoder, indent=indent)


def cell(value: Any) -> str:
    """Give a value in one line, without tabs; nothing for None."""
    text = value.isoformat() if hasattr(value, "isoformat") else "" if value is None else str(value)
    return " ".join(text.split())


def row(run: Run) -> tuple[str, ...]:
    """Give a run's line in a table for people."""
    return run.name, run.status, progress.counts(run), progress.pace(run), cell(progress.reason(run))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Give the lines of a table whose columns are as wide as they have to be."""
    widths = [max(len(line[column]) for line in [heads, *rows]) for column in range(len(heads))]
    for line in [heads, *rows]:
        yield "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()


def summary(run: Run) -> str:
    """Give status, figures and reason in one line."""
    return ", ".join(filter(None, [run.status, progress.counts(run), progress.pace(run), cell(progress.reason(run))]))


def paragraph(run: Run, causes: Sequence[CauseCount]) -> Iterator[str]:
    """Give what `status` prints for people."""
    yield f"{run.name}: {summary(run)}"
    if run.holder:
        yield f"  worked on by {describe(run.holder)}"
    if run.started_by:
        yield f"  started by {run.started_by}"
    if not run.exactly_once:
        yield "  objects may have run twice, since the ledger is not in the transaction of their work"
    if run.came_later:
        yield f"  {run.came_later:,} rows came later, and belong to another run"
    if causes:
        yield f"  {_unresolved(sum(one.failures for one in causes))}:"
    for one in causes:
        yield f"  {one.failures:>8,} x {one.cause}, such as {one.key}"


def complaint(run: Run) -> str:
    """Give why a run needs someone, or nothing."""
    if progress.needs_rescue(run):
        return cell(progress.reason(run))
    if run.status == Run.Status.PAUSED and run.stop_code not in ASKED_FOR:
        return f"it is paused ({cell(run.stop_code)}): {cell(run.stop_reason)}"
    unresolved = Failure.objects.using(run._state.db).filter(run=run, resolved_at=None).count()
    return _unresolved(unresolved) if unresolved and run.status in Run.ENDED else ""


def failures(count: int) -> str:
    """Give a number of failures in words."""
    return f"{count:,} failure{'' if count == 1 else 's'}"


def _unresolved(count: int) -> str:
    return f"{failures(count)} {'is' if count == 1 else 'are'} unresolved"
