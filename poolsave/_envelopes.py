"""Bytes for functions, objects and values: what crosses between processes was pickled here, inside a `try`,
in the place where a failure belongs to one object."""

from __future__ import annotations

import io
import pickle
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ._plain import PLAIN, are_flat, flat
from .errors import InvalidOperation

__all__ = [
    "Sealed",
    "dumps",
    "pack_function",
    "pack_objects",
    "seal_surely",
    "split",
    "unseal",
]

LONG = 100
"""Numbers from which a range is smaller and quicker as a range than written out: pickle has to name its class."""
HISTORICAL = "__fake__"
"""The `__module__` that Django gives to the models of a migration's state."""


class Sealed:
    """A value as bytes, pickled by itself so that only its own object fails if it cannot be restored."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


def pack_function(function: Any, constants: Mapping[str, Any] | None = None) -> bytes:
    """Pickle a function, and what is bound to it, for workers that do not share the caller's memory.

    Raises:
        InvalidOperation: naming the function and showing the fix.
    """
    try:
        pickle.dumps(function, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        name = getattr(function, "__qualname__", None) or repr(function)
        raise InvalidOperation(
            f"{name} cannot be pickled for workers that do not share the caller's memory ({error}): they find a "
            "function by its name in a module that they can import, which a lambda, a nested function, one typed into "
            "a shell and a method of an unpicklable object do not have; define it at the top of a module:\n\n"
            "    @pooled_operation\n    def save_one(row):\n        ...\n\n"
            'or run map() or stream() with start_method="fork" (the default only while no other thread is alive), '
            'or use executor="thread"'
        ) from error
    try:
        return dumps((function, dict(constants or {})))
    except Exception as error:
        raise InvalidOperation(
            f"what is bound to {function!r} cannot be pickled for workers that do not share the caller's memory "
            f"({error}): bind {sorted(constants or {})} as plain data, and build the rest inside the function"
        ) from error


def dumps(value: Any) -> bytes:
    """Pickle what is the user's.

    Raises:
        InvalidOperation: if an instance of a historical model is in it.
        Exception: whatever the value's own pickling raises.
    """
    mine = vars(_idle)  # those of this thread
    dump = mine.pop("dump", None) or dumper()  # taken away, since the value's own pickling may come by here again
    try:
        return dump(value)
    finally:
        mine["dump"] = dump


_idle = threading.local()


def dumper() -> Callable[[Any], bytes]:
    """Make what pickles one value after the other, each by itself: to make a pickler takes as long as to use it."""
    buffer = io.BytesIO()
    pickler = _Present(buffer, pickle.HIGHEST_PROTOCOL)

    def dump(value: Any) -> bytes:
        try:
            pickler.dump(value)
            return buffer.getvalue()
        finally:  # nothing of the value stays: the memo would keep it alive, and the buffer its bytes
            pickler.clear_memo()
            buffer.seek(0)
            buffer.truncate()

    return dump


class _Present(pickle.Pickler):
    """Refuses instances of historical models, which pickle knows by name only, and would restore as today's."""

    def reducer_override(self, value: Any) -> Any:
        if type(value).__module__ == HISTORICAL:
            raise InvalidOperation(
                f"{value!r} is an instance of a historical model, which would arrive as one of today's: map the "
                "queryset itself, or send primary keys"
            )
        return NotImplemented


def seal_surely(value: Any) -> Any:
    """Prepare a value for the way to another process, and try that it can be restored there.

    Raises:
        InvalidOperation: if an instance of a historical model is in it.
        Exception: whatever the value's own pickling or unpickling raises.
    """
    if type(value) in PLAIN:
        return value
    try:
        if (copy := flat(value)) is not None:
            return copy
        data = dumps(value)
        pickle.loads(data)
    except Exception as error:
        error.add_note("poolsave: this is about the return value, which cannot come back from the worker")
        raise
    return Sealed(data)


def unseal(value: Any) -> Any:
    """Undo `seal_surely`.

    Raises:
        Exception: whatever the value's own unpickling raises.
    """
    return pickle.loads(value.data) if type(value) is Sealed else value


def pack_objects(objects: Sequence[Any]) -> tuple[bytes, dict[int, BaseException]]:
    """Pickle a chunk; gives the bytes, and by offset the errors of objects that cannot be pickled.

    The bytes are those of a column, and whether each object in it was pickled by itself, as it is unless all of them
    are plain or flat: what can change must not be shared by several objects of a chunk, and what cannot be restored
    must fail alone.
    """
    if isinstance(objects, range) and len(objects) < LONG:
        objects = [*objects]
    errors: dict[int, BaseException] = {}
    if isinstance(objects, range) or PLAIN.issuperset(map(type, objects)) or are_flat(objects):
        column, alone = objects, False
    else:
        column, alone = _pickled_alone(objects, errors), True
    return pickle.dumps((column, alone), pickle.HIGHEST_PROTOCOL), errors


def _pickled_alone(objects: Sequence[Any], errors: dict[int, BaseException]) -> list[bytes]:
    dump = dumper()
    try:
        return [dump(item) for item in objects]
    except Exception:  # of one of them at least; which ones is found out below
        column = []
    for offset, item in enumerate(objects):
        try:
            column.append(dump(item))
        except Exception as error:  # whatever the object's own pickling raises is that object's failure
            error.add_note("poolsave: this is about the object itself, which cannot be sent to a worker")
            errors[offset] = error
    return column


def split(column: list[Any]) -> tuple[list[Any], dict[int, bytes]]:
    """Part a column into what can be pickled together and, by offset, what is bytes already."""
    sealed = {offset: value.data for offset, value in enumerate(column) if type(value) is Sealed}
    if sealed:
        column = [None if offset in sealed else value for offset, value in enumerate(column)]
    return column, sealed
