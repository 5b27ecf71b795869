"""Failures as files: CSV for spreadsheets, JSON lines for programs, line by line, however many there are."""

from __future__ import annotations

import csv
import json
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from django.core.serializers.json import DjangoJSONEncoder

from .._reports.export import csv_cell

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from .models import Failure

__all__ = ["COLUMNS", "csv_lines", "json_lines"]

COLUMNS = ("key", "kind", "error_class", "sqlstate", "constraint", "frame", "message", "attempts", "created_at")
DETAILS = ("cause", "traceback")
"""What JSON has besides: a spreadsheet has no room for these."""


class _Echo:
    """A file that gives back each line that is written."""

    def write(self, line: str) -> str:
        return line


def csv_lines(failures: QuerySet[Failure]) -> Generator[str]:
    """Give a line with the names of the columns, and one for each failure, with their line ends.

    What a spreadsheet would take for a formula has an apostrophe before it.
    """
    writer: Any = csv.writer(_Echo())
    yield writer.writerow(COLUMNS)
    for row in failures.values_list(*COLUMNS).iterator():
        yield writer.writerow([csv_cell(value) for value in row])


def json_lines(failures: QuerySet[Failure]) -> Generator[str]:
    """Give an object for each failure, with its whole cause and its traceback, without line ends."""
    for row in failures.values(*COLUMNS, *DETAILS).iterator():
        yield json.dumps(row, cls=DjangoJSONEncoder)
