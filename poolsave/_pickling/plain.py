"""Plain values, which never change and can always be pickled and restored, so that nothing has to be tried; and flat
ones, which hold nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

IMMUTABLE_TYPES = frozenset({int, str, bytes, float, bool, complex, type(None)})
"""Their types."""


def all_flat(objects: Sequence[Any]) -> bool:
    """Whether these are all tuples, or all dictionaries, of plain values, none of them twice, so that what is pickled
    together shares nothing that could change."""
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
    """A flat value as nobody can change it any more; None if it is not one."""
    if type(value) is tuple and IMMUTABLE_TYPES.issuperset(map(type, value)):
        return value
    if (
        type(value) is dict
        and IMMUTABLE_TYPES.issuperset(map(type, value))
        and IMMUTABLE_TYPES.issuperset(map(type, value.values()))
    ):
        return value.copy()
    return None
