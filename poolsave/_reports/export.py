"""A report as a file: JSON for programs, CSV for spreadsheets. Whatever the objects and values are, it is complete and
valid, or it is not there."""

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
from .._runtime.foreign_exceptions import attribute_of, repr_of, text_of
from ..outcomes import Outcome
from .causes import printable

FIELDS: tuple[str, ...] = (
    "index", "status", "value", "error_type", "error", "sqlstate", "item", "attempts", "seconds", "worker", "traceback",
    "stage",
)  # fmt: skip
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Source: OWASP, "CSV Injection"; the last four are the full-width variants of the first."""
MAX_DEPTH = 50
"""Lists and mappings within one another; what is deeper is told by its repr. Parsers have limits, too."""
BITS_PER_DIGIT = math.log2(10)
STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
MAX_LINKS = 40
"""Links after one another, as Linux counts them before it speaks of a loop."""
DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")


def write_json(path: str | PathLike[str], summary: Mapping[str, Any], outcomes: Iterable[Outcome[Any]]) -> None:
    """Write one object with the summary and a list of outcomes, one a line, without holding them all."""
    with _complete_file(path) as file:
        file.write(f'{_json(summary)[:-1]}, "outcomes": [')
        separator = "\n"
        for outcome in outcomes:
            file.write(separator + _json(_row(outcome)))
            separator = ",\n"
        file.write("\n]}\n")


def write_csv(path: str | PathLike[str], outcomes: Iterable[Outcome[Any]]) -> None:
    """Write one line per outcome. Texts that a spreadsheet would take for a formula get an apostrophe in front."""
    with _complete_file(path) as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for outcome in outcomes:
            writer.writerow({name: _cell(value) for name, value in _row(outcome).items()})


@contextmanager
def _complete_file(path: str | PathLike[str]) -> Iterator[IO[str]]:
    """A file that takes its name when it is complete. Nobody else can read a new one, since it holds the objects; one
    that is replaced keeps its permissions, and a link to it stays."""
    target = _destination(os.fspath(path))
    draft = _new_draft(target) if isinstance(target, str) and not _is_special(target) else None
    try:
        with open(draft or _opened(target), "w", encoding="utf-8", newline="") as file:
            yield file
        if isinstance(target, str) and draft is not None:
            _put_in_place(draft, target)
    finally:
        if draft is not None:
            with suppress(FileNotFoundError):
                os.unlink(draft)


def _new_draft(target: str) -> str | None:
    try:
        handle, draft = tempfile.mkstemp(prefix=".poolsave-", dir=os.path.dirname(target) or ".")
    except OSError:  # a file of one's own in a folder of others; where it is something else, to open it says so
        return None
    os.close(handle)
    return draft


def _put_in_place(draft: str, target: str) -> None:
    with suppress(FileNotFoundError):
        os.chmod(draft, os.stat(target).st_mode & 0o777)
    try:
        os.replace(draft, target)
    except OSError:  # a file that a container has mounted, or that belongs to another user, can only be written to
        shutil.copyfile(draft, target)


def _destination(path: str) -> str | int:
    """The file that a path leads to, which need not be there, or the number of a descriptor that is open."""
    for _ in range(MAX_LINKS):
        name = os.path.abspath(path)
        if found := DESCRIPTOR.fullmatch(name):
            return int(found[1])
        if name in STREAMS:
            return STREAMS[name]
        if not os.path.islink(path):
            break
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    return path


def _is_special(path: str) -> bool:
    return os.path.exists(path) and not os.path.isfile(path)


def _opened(target: str | int) -> str | int:
    if isinstance(target, str):
        return target
    for stream in (sys.stdout, sys.stderr):  # what was printed before comes before
        if stream is not None:  # as it is without a console
            stream.flush()
    return os.dup(target)  # opened anew, a redirected file would be cut, or written over by what is printed later


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


def _json(value: Any) -> str:
    return json.dumps(_plain(value, ()), allow_nan=False)


def _plain(value: Any, around: tuple[int, ...]) -> Any:
    """As JSON knows it, by the methods of the built-in classes, which those of a subclass may hide."""
    kind = type(value)
    if issubclass(kind, dict | list | tuple):
        if id(value) in around or len(around) >= MAX_DEPTH:
            return printable(repr_of(value))
        around = (*around, id(value))
        if issubclass(kind, dict):
            return _with_text_keys(dict.items(value), around)
        return [_plain(one, around) for one in (list if issubclass(kind, list) else tuple).__iter__(value)]
    return _scalar(value)


def _with_text_keys(items: Iterable[tuple[Any, Any]], around: tuple[int, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in items:
        name = _scalar(key)
        text = name if isinstance(name, str) else json.dumps(name)
        while text in found:  # 1 and "1"
            text += "'"
        found[text] = _plain(value, around)
    return found


def _scalar(value: Any) -> str | int | float | None:
    """A value of exactly these classes."""
    kind = type(value)
    if value is None or kind is bool:
        return value  # type: ignore[no-any-return]
    if issubclass(kind, int):
        return _number(int.__index__(value))
    if issubclass(kind, float):
        number = float.__float__(value)
        return number if math.isfinite(number) else repr(number)
    return printable(str.__str__(value) if issubclass(kind, str) else _told(value))


def _number(number: int) -> int | str:
    limit = sys.get_int_max_str_digits()  # beyond it Python writes no decimal digits
    return number if not limit or number.bit_length() < limit * BITS_PER_DIGIT - 1 else hex(number)


def _told(value: object) -> str:
    # Dates, decimals and UUIDs are best told by str(); whatever else an object may be, by its repr.
    by_text = attribute_of(type(value), "__module__") in ("datetime", "decimal", "uuid")
    return text_of(value) if by_text else repr_of(value)


def _cell(value: object) -> str | int | float | None:
    found = _scalar(value)
    return f"'{found}" if isinstance(found, str) and found.startswith(FORMULA_STARTS) else found
