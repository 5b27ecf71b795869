"""A report as a file: JSON for programs, CSV for spreadsheets."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

from .._db.error_codes import sqlstate_of
from ..errors import text_of
from ..outcomes import Outcome

FIELDS: tuple[str, ...] = (
    "index", "status", "value", "error_type", "error", "sqlstate", "item", "attempts", "seconds", "worker", "traceback",
    "stage",
)  # fmt: skip
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
"""Source: OWASP, "CSV Injection"."""


def write_json(path: str | PathLike[str], summary: Mapping[str, Any], outcomes: Iterable[Outcome[Any]]) -> None:
    """Write one object with the summary and a list of outcomes, one a line, without holding them all."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(f'{json.dumps(summary, default=str)[:-1]}, "outcomes": [')
        separator = "\n"
        for outcome in outcomes:
            file.write(separator + json.dumps(_row(outcome), default=_told, skipkeys=True))
            separator = ",\n"
        file.write("\n]}\n")


def write_csv(path: str | PathLike[str], outcomes: Iterable[Outcome[Any]]) -> None:
    """Write one line per outcome. Texts that a spreadsheet would take for a formula get an apostrophe in front."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for outcome in outcomes:
            writer.writerow({name: _cell(value) for name, value in _row(outcome).items()})


def _row(outcome: Outcome[Any]) -> dict[str, Any]:
    error = outcome.error
    return {
        "index": outcome.index,
        "status": str(outcome.status),
        "value": outcome.value,
        "error_type": None if error is None else type(error).__name__,
        "error": None if error is None else text_of(error),
        "sqlstate": None if error is None else sqlstate_of(error),
        "item": outcome.item,
        "attempts": outcome.attempts,
        "seconds": round(outcome.seconds, 6),
        "worker": outcome.worker,
        "traceback": outcome.traceback,
        "stage": outcome.stage,
    }


def _told(value: object) -> str:
    # Dates, decimals and UUIDs are best told by str(); whatever else an object may be, by its repr.
    return str(value) if type(value).__module__ in {"datetime", "decimal", "uuid"} else repr(value)


def _cell(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else _told(value)
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text
