"""A report as a file: JSON for programs, CSV for spreadsheets.

Whatever the objects and values are, the file is complete and valid, or it is not there. `Report.to_json` and
`Report.to_csv` call it.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike
from typing import IO, Any

from .._db.error_codes import sqlstate_of
from .._runtime.foreign_exceptions import attribute_of, class_name_of, repr_of, text_of
from ..outcomes import Outcome
from .causes import printable
from .items import EXACT, exact_item

FIELDS: tuple[str, ...] = (
    "index", "status", "value", "error_type", "error", "sqlstate", "item", "attempts", "seconds", "worker", "traceback",
    "stage",
)  # fmt: skip
FIELDS_WITH_EXACT = tuple(name for field in FIELDS for name in ([field, EXACT] if field == "item" else [field]))
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Source: OWASP, "CSV Injection"; the last four are the full-width variants of the first."""
MAX_DEPTH = 50
"""Levels of nested lists and mappings; below them a value is written as its repr. Parsers have limits, too."""
BITS_PER_DIGIT = math.log2(10)
STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
MAX_LINKS = 40
"""Symbolic links that are followed one after the other: the limit of Linux, which then reports a loop (ELOOP)."""
DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")


def write_json(
    path: str | PathLike[str],
    summary: Mapping[str, Any],
    outcomes: Iterable[Outcome[Any]],
    exact: set[int] | None = None,
) -> None:
    """Write one object with the summary and a list of outcomes, one a line, without holding them all.

    `exact`: the indexes of the objects whose items are to come back by `load_items`; each is written once.
    """
    with _complete_file(path) as file:
        file.write(f'{_json(summary)[:-1]}, "outcomes": [')
        separator = "\n"
        for outcome in outcomes:
            row = _json(_row(outcome))
            item = exact_item(outcome, exact)
            file.write(separator + (row if item is None else f'{row[:-1]}, "{EXACT}": {item}}}'))
            separator = ",\n"
        file.write("\n]}\n")


def write_csv(path: str | PathLike[str], outcomes: Iterable[Outcome[Any]], exact: set[int] | None = None) -> None:
    """Write one line per outcome. Texts that a spreadsheet would take for a formula get an apostrophe in front.

    `exact`: as in `write_json`.
    """
    with _complete_file(path) as file:
        writer = csv.DictWriter(file, FIELDS if exact is None else FIELDS_WITH_EXACT)
        writer.writeheader()
        for outcome in outcomes:
            row = _row(outcome) if exact is None else {**_row(outcome), EXACT: exact_item(outcome, exact)}
            writer.writerow({name: csv_cell(value) for name, value in row.items()})


@contextmanager
def _complete_file(path: str | PathLike[str]) -> Iterator[IO[str]]:
    """Open a draft that takes the file's name when it is complete.

    Only its owner can read a new file, since it holds the objects. A file that is replaced keeps its permissions, and a
    link to it stays.
    """
    target = _resolve_links(os.fspath(path))
    draft = _new_draft(target) if isinstance(target, str) and not _is_special(target) else None
    try:
        with open(draft or _without_cutting(target), "w", encoding="utf-8", newline="") as file:
            yield file
        if isinstance(target, str) and draft is not None:
            _replace_file(draft, target)
    finally:
        if draft is not None:
            with suppress(FileNotFoundError):
                os.unlink(draft)


def _new_draft(target: str) -> str | None:
    try:
        handle, draft = tempfile.mkstemp(prefix=".poolsave-", dir=os.path.dirname(target) or ".")
    except OSError:  # the folder is not writable, though the file may be; any other cause fails again in open()
        return None
    os.close(handle)
    return draft


def _replace_file(draft: str, target: str) -> None:
    with suppress(FileNotFoundError):
        os.chmod(draft, os.stat(target).st_mode & 0o777)
    try:
        os.replace(draft, target)
    except OSError:  # a file that a container mounts, or of another user, cannot be replaced but written to
        shutil.copyfile(draft, target)


def _resolve_links(path: str) -> str | int:
    """Give the file that a path leads to, which need not exist, or the number of an open descriptor."""
    for _ in range(MAX_LINKS):
        name = os.path.abspath(path)
        if match := DESCRIPTOR.fullmatch(name):
            return int(match[1])
        if name in STREAMS:
            return STREAMS[name]
        if not os.path.islink(path):
            break
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    return path


def _is_special(path: str) -> bool:
    return os.path.exists(path) and not os.path.isfile(path)


def _without_cutting(target: str | int) -> str | int:
    if isinstance(target, str):
        return target
    for stream in (sys.stdout, sys.stderr):  # text printed so far comes first
        if stream is not None:  # None without a console
            stream.flush()
    return os.dup(target)  # a second open() would truncate a redirected file, or later prints would overwrite it


def _row(outcome: Outcome[Any]) -> dict[str, Any]:
    error = outcome.error
    return {
        "index": outcome.index,
        "status": str(outcome.status),
        "value": outcome.value,
        "error_type": None if error is None else class_name_of(error),
        "error": None if error is None else text_of(error),
        "sqlstate": None if error is None else sqlstate_of(error),
        "item": outcome.item,
        "attempts": outcome.attempts,
        "seconds": round(outcome.seconds, 6),
        "worker": outcome.worker,
        "traceback": outcome.traceback,
        "stage": outcome.stage,
    }


def _json(value: Any) -> str:
    return json.dumps(_plain(value, ()), allow_nan=False)


def _plain(value: Any, ancestors: tuple[int, ...]) -> Any:
    """Give a value as JSON types. Calls the methods of the built-in classes, since a subclass may override them."""
    kind = type(value)
    if issubclass(kind, dict | list | tuple):
        if id(value) in ancestors or len(ancestors) >= MAX_DEPTH:
            return printable(repr_of(value))
        ancestors = (*ancestors, id(value))
        if issubclass(kind, dict):
            return _with_text_keys(dict.items(value), ancestors)
        return [_plain(element, ancestors) for element in (list if issubclass(kind, list) else tuple).__iter__(value)]
    return _scalar(value)


def _with_text_keys(items: Iterable[tuple[Any, Any]], ancestors: tuple[int, ...]) -> dict[str, Any]:
    texts: dict[str, Any] = {}
    for key, value in items:
        name = _scalar(key)
        text = name if isinstance(name, str) else json.dumps(name)
        while text in texts:  # 1 and "1"
            text += "'"
        texts[text] = _plain(value, ancestors)
    return texts


def _scalar(value: Any) -> str | int | float | None:
    """Give a value of exactly one of these classes."""
    kind = type(value)
    if value is None or kind is bool:
        return value  # type: ignore[no-any-return]
    if issubclass(kind, int):
        return _number(int.__index__(value))
    if issubclass(kind, float):
        number = float.__float__(value)
        return number if math.isfinite(number) else repr(number)
    return printable(str.__str__(value) if issubclass(kind, str) else _as_text(value))


def _number(number: int) -> int | str:
    limit = sys.get_int_max_str_digits()  # beyond it Python writes no decimal digits
    return number if not limit or number.bit_length() < limit * BITS_PER_DIGIT - 1 else hex(number)


def _as_text(value: object) -> str:
    # Dates, decimals and UUIDs read best as str(), all other objects as their repr.
    by_text = attribute_of(type(value), "__module__") in ("datetime", "decimal", "uuid")
    return text_of(value) if by_text else repr_of(value)


def csv_cell(value: object) -> str | int | float | None:
    """Give a value as a cell that no spreadsheet takes for a formula."""
    scalar = _scalar(value)
    return f"'{scalar}" if isinstance(scalar, str) and scalar.startswith(FORMULA_STARTS) else scalar
