"""Recognises plain and flat values, which need no trial whether they can be pickled and restored.

A plain value is immutable and of a built-in type. A flat value is a tuple or dictionary of plain values.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

IMMUTABLE_TYPES = frozenset({int, str, bytes, float, bool, complex, type(None)})
"""The types of plain values."""


def all_flat(objects: Sequence[Any]) -> bool:
    """Whether the objects are all flat tuples, or all distinct flat dictionaries.

    If they are pickled together, they then share nothing mutable.
    """
    kinds = {*map(type, objects)}
    if kinds == {tuple}:
        return IMMUTABLE_TYPES.issuperset(map(type, chain.from_iterable(objects)))
    return (
        kinds == {dict}
        and len({*map(id, objects)}) == len(objects)
        and IMMUTABLE_TYPES.issuperset(map(type, chain.from_iterable(objects)))
        and IMMUTABLE_TYPES.issuperset(map(type, chain.from_iterable(map(dict.values, objects))))
    )


def copy_if_flat(value: Any) -> Any:
    """Give a flat value, a dictionary as a copy, so that later changes do not reach it; None if it is not flat."""
    if type(value) is tuple and IMMUTABLE_TYPES.issuperset(map(type, value)):
        return value
    if (
        type(value) is dict
        and IMMUTABLE_TYPES.issuperset(map(type, value))
        and IMMUTABLE_TYPES.issuperset(map(type, value.values()))
    ):
        return value.copy()
    return None
