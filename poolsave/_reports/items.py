"""Items in a file of failures, so that they come back exactly, or are refused by name. `export` writes them.

A value that JSON has is itself. Any other one is an object with one key, its tag: `{"$tuple": [1, 2]}`.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from math import isfinite
from os import PathLike
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from .._runtime.foreign_exceptions import class_name_of, class_path_of, repr_of, text_of
from ..errors import InvalidOperation
from ..outcomes import Outcome
from .causes import printable

EXACT = "item_exact"
"""The column of a CSV file, and the key in JSON, that has an item as it is given back."""
MAX_DEPTH = 50
"""Levels of nested containers; below them an item is not given back. Parsers have limits, too."""
MAX_NUMBER_BITS = 2000
"""Bits of a whole number that is written in decimal digits: Python reads at least 640 digits, and often no more."""
MAX_CELL = 2**31 - 1
"""Characters of a cell that is read. By default Python refuses a cell of more than 131,072."""
REPR = "$repr"
"""The tag of a value that cannot come back: the path of its class and its repr."""


def load_items(path: str | PathLike[str]) -> list[Any]:
    """Give the items of a file that `to_csv(path, only="failures")` or `to_json` wrote, to be run again.

    They are those of `report.failed_items()`: what failed, and neither what was lost nor what an earlier stage of a
    pipeline may have saved. After a run over a queryset they are primary keys.

    These come back as equal objects of the same class, also inside each other: None, bool, int, float (NaN, too), str,
    bytes, list, tuple, dict with any of these as keys, set, frozenset, Decimal, UUID, pathlib.Path, date, time
    without a zone, timedelta, and datetime (naive, with a fixed offset, or a ZoneInfo). A member of an enumeration, or
    another subclass of str, int or float, comes back as the plain value.

    Raises:
        InvalidOperation: naming the first item of another class (a model instance, a file, a circular list), of which
            the file has only the repr; or what is wrong with the file.
        OSError: if it cannot be read.

    Example:
        >>> from poolsave import load_items, pooled_operation
        >>> @pooled_operation(executor="serial", transaction=None)
        ... def halve(number, step):
        ...     return 10 // number
        >>> halve.starmap([(5, 1), (0, 2)]).to_csv("failures.csv", only="failures")
        >>> load_items("failures.csv")
        [(0, 2)]
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            text = file.read()
        except UnicodeDecodeError as error:
            why = f"{str(path)!r} is no UTF-8, perhaps since a spreadsheet has saved it: {error}"
            raise InvalidOperation(why) from error
    rows = _json_rows(text, path) if text.lstrip().startswith("{") else _csv_rows(text, path)
    return [_item(encoded, index, path) for index, encoded in rows]


def exact_item(outcome: Outcome[Any], indexes: set[int] | None) -> str | None:
    """Give the item as JSON if its index is one of these, and take the index out."""
    if indexes is None or outcome.index not in indexes:
        return None
    indexes.discard(outcome.index)
    return json.dumps(_encode(outcome.item, ()), allow_nan=False)


def _encode(value: Any, ancestors: tuple[int, ...]) -> Any:
    kind = type(value)
    if kind in CONTAINERS and (id(value) in ancestors or len(ancestors) >= MAX_DEPTH):
        return _as_repr(value)
    if kind in CONTAINERS:
        return CONTAINERS[kind](value, (*ancestors, id(value)))
    if kind in SCALARS:
        return SCALARS[kind](value)
    for base, plain in ((str, str.__str__), (int, int.__index__), (float, float.__float__)):
        if issubclass(kind, base):
            return SCALARS[base](plain(value))
    return _as_repr(value)


def _as_repr(value: Any) -> dict[str, Any]:
    return {REPR: [printable(class_path_of(value)), printable(repr_of(value))]}


def _sequence(value: Any, ancestors: tuple[int, ...]) -> list[Any]:
    return [_encode(element, ancestors) for element in value]


def _tagged(tag: str) -> Callable[[Any, tuple[int, ...]], dict[str, Any]]:
    return lambda value, ancestors: {tag: _sequence(value, ancestors)}


def _mapping(value: dict[Any, Any], ancestors: tuple[int, ...]) -> dict[str, Any]:
    if all(type(key) is str and not key.startswith("$") and _is_text(key) for key in value):
        return {key: _encode(element, ancestors) for key, element in value.items()}
    return {"$dict": [[_encode(key, ancestors), _encode(element, ancestors)] for key, element in value.items()]}


def _is_text(text: str) -> bool:
    return printable(text) == text


def _text(text: str) -> Any:
    # JSON could have half of a surrogate pair, but other programs do not read it, and two halves would become one.
    return text if _is_text(text) else {"$str": text.encode("utf-8", "surrogatepass").hex()}


def _whole(number: int) -> Any:
    return number if number.bit_length() <= MAX_NUMBER_BITS else {"$int": hex(number)}


def _moment(moment: datetime) -> Any:
    zone = moment.tzinfo
    naive = moment.replace(tzinfo=None).isoformat()
    if zone is None:
        return {"$datetime": [naive, None, moment.fold]}
    if type(zone) is ZoneInfo and zone.key is not None:
        return {"$datetime": [naive, zone.key, moment.fold]}
    offset = zone.utcoffset(None) if type(zone) is timezone else None
    if offset is None or zone != timezone(offset):
        return _as_repr(moment)
    return {"$datetime": [naive, offset // timedelta(microseconds=1), moment.fold]}


def _decode_moment(parts: list[Any]) -> datetime:
    naive, zone, fold = parts
    tzinfo: Any = None
    if isinstance(zone, str):
        tzinfo = ZoneInfo(zone)
    elif zone is not None:
        tzinfo = timezone(timedelta(microseconds=zone))
    return datetime.fromisoformat(naive).replace(tzinfo=tzinfo, fold=fold)


def _clock(moment: time) -> Any:
    return {"$time": [moment.isoformat(), moment.fold]} if moment.tzinfo is None else _as_repr(moment)


CONTAINERS: Mapping[type, Callable[[Any, tuple[int, ...]], Any]] = {
    list: _sequence,
    tuple: _tagged("$tuple"),
    set: _tagged("$set"),
    frozenset: _tagged("$frozenset"),
    dict: _mapping,
}
SCALARS: Mapping[type, Callable[[Any], Any]] = {
    type(None): lambda value: value,
    bool: lambda value: value,
    str: _text,
    int: _whole,
    float: lambda value: value if isfinite(value) else {"$float": repr(value)},
    bytes: lambda value: {"$bytes": base64.b64encode(value).decode()},
    Decimal: lambda value: {"$decimal": str(value)},
    uuid.UUID: lambda value: {"$uuid": str(value)},
    type(Path()): lambda value: {"$path": _text(str(value))},
    datetime: _moment,
    date: lambda value: {"$date": value.isoformat()},
    time: _clock,
    timedelta: lambda value: {"$timedelta": [value.days, value.seconds, value.microseconds]},
}
DECODERS: Mapping[str, Callable[[Any], Any]] = {
    "$tuple": tuple,
    "$set": set,
    "$frozenset": frozenset,
    "$dict": dict,
    "$str": lambda text: bytes.fromhex(text).decode("utf-8", "surrogatepass"),
    "$int": lambda text: int(text, 16),
    "$float": float,
    "$bytes": base64.b64decode,
    "$decimal": Decimal,
    "$uuid": uuid.UUID,
    "$path": Path,
    "$datetime": _decode_moment,
    "$date": date.fromisoformat,
    "$time": lambda parts: time.fromisoformat(parts[0]).replace(fold=parts[1]),
    "$timedelta": lambda parts: timedelta(*parts),
}


def _decode(value: dict[str, Any]) -> Any:
    """Restore an object of JSON whose members are restored already."""
    tag = next(iter(value), "")
    if len(value) != 1 or not tag.startswith("$"):
        return value
    if tag == REPR:
        raise InvalidOperation(f"it is of {value[tag][0]}, of which the file has only the repr, {value[tag][1]}")
    return DECODERS[tag](value[tag])


def _item(encoded: str, index: Any, path: object) -> Any:
    try:
        return json.loads(encoded, object_hook=_decode)
    except Exception as error:
        why = text_of(error) or class_name_of(error)
        raise InvalidOperation(f"the item at index {index} of {str(path)!r} cannot be given back: {why}") from error


def _json_rows(text: str, path: object) -> Iterator[tuple[Any, str]]:
    try:
        content = json.loads(text)
        outcomes = content["outcomes"]
    except (ValueError, LookupError) as error:
        raise InvalidOperation(f"{str(path)!r} is no whole file of to_json(): {text_of(error)}") from error
    _refuse_other_file(content.get("only") == "failures", path)
    for row in outcomes:
        if EXACT in row:
            yield row.get("index"), json.dumps(row[EXACT])


def _csv_rows(text: str, path: object) -> Iterator[tuple[Any, str]]:
    delimiter = ";" if ";" in text.partition("\n")[0] else ","  # spreadsheets write that in some countries
    with _long_cells():
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        _refuse_other_file(EXACT in (rows.fieldnames or ()), path)
        for row in rows:
            if None in row.values():
                raise InvalidOperation(
                    f"{str(path)!r} is no whole file of to_csv(): line {rows.line_num} ends too early"
                )
            if row[EXACT]:
                yield row.get("index"), row[EXACT].removeprefix("'")  # before the minus of a number


def _refuse_other_file(accepted: bool, path: object) -> None:
    if not accepted:
        raise InvalidOperation(
            f"{str(path)!r} was not written for this: write it by "
            'report.to_csv(path, only="failures") or report.to_json(path, only="failures")'
        )


@contextmanager
def _long_cells() -> Iterator[None]:
    before = csv.field_size_limit(MAX_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)
