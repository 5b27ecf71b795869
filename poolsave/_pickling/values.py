"""Bytes for functions, objects and values: what crosses between processes was pickled here, inside a `try`,
in the place where a failure belongs to one object."""

from __future__ import annotations

import io
import pickle
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django.core.files.base import File

from .._runtime.foreign_exceptions import add_note, repr_of, text_of
from ..errors import InvalidOperation
from .files import reduce_file
from .plain import IMMUTABLE_TYPES, all_flat, copy_if_flat

MAX_REUSED_BYTES = 4096
"""Bytes of a value up to which what has pickled it is used again."""
MIN_RANGE_LENGTH = 100
"""Numbers from which a range is smaller and quicker as a range than written out: pickle has to name its class."""
HISTORICAL = "__fake__"
"""The `__module__` that Django gives to the models of a migration's state."""


class Pickled:
    """A value as bytes, pickled by itself so that only its own object fails if it cannot be restored."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class CopyOnUse:
    """A flat dictionary of which each try gets a copy."""

    __slots__ = ("value",)

    def __init__(self, value: dict[Any, Any]) -> None:
        self.value = value


def pickle_function(function: Any, constants: Mapping[str, Any] | None = None) -> bytes:
    """Pickle a function, and what is bound to it, for workers that do not share the caller's memory.

    Raises:
        InvalidOperation: naming the function and showing the fix.
    """
    try:
        pickle.dumps(function, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        name = getattr(function, "__qualname__", None) or repr(function)
        raise InvalidOperation(
            f"{name} cannot be pickled for workers that do not share the caller's memory ({text_of(error)}): they find "
            "a function by its name in a module that they can import, which a lambda, a nested function, one typed "
            "into a shell and a method of an unpicklable object do not have; define it at the top of a module:\n\n"
            "    @pooled_operation\n    def save_one(row):\n        ...\n\n"
            'or run map() or stream() with start_method="fork" (the default only while no other thread is alive), '
            'or use executor="thread"'
        ) from error
    try:
        return dumps((function, dict(constants or {})))
    except Exception as error:
        raise InvalidOperation(
            f"what is bound to {function!r} cannot be pickled for workers that do not share the caller's memory "
            f"({text_of(error)}): bind {sorted(constants or {})} as plain data, and build the rest inside the function"
        ) from error


def refuse_function_of_shell(function: Any) -> None:
    """Refuse what was typed into a shell or notebook, for workers that are not forked: they import the caller's script
    to find its functions, and there is none.

    Raises:
        InvalidOperation: naming the function and the ways out.
    """
    main = sys.modules["__main__"]
    has_script = getattr(main, "__spec__", None) is not None or hasattr(main, "__file__")
    if getattr(function, "__module__", None) == "__main__" and not has_script:
        raise InvalidOperation(
            f"{getattr(function, '__qualname__', repr(function))} was typed into a shell or notebook, where workers "
            "that are not forked (the default while another thread is alive) do not find it: put it into a module and "
            'import it from there, or use executor="thread" or start_method="fork"'
        )


def dumps(value: Any) -> bytes:
    """Pickle what is the user's.

    Raises:
        InvalidOperation: if an instance of a historical model is in it, or a file that is open on disk.
        Exception: whatever the value's own pickling raises.
    """
    mine = vars(_idle)  # those of this thread
    dump = mine.pop("dump", None) or make_pickler()  # taken away, since the value's own pickling may come by here again
    data = dump(value)
    if len(data) <= MAX_REUSED_BYTES:
        mine["dump"] = dump
    return data


_idle = threading.local()


def make_pickler() -> Callable[[Any], bytes]:
    """What pickles one value after the other, each by itself: to make a pickler takes as long as to use it.

    Use it no more after an exception, which may have come (from a signal's handler) between any two lines, nor after a
    value of more than MAX_REUSED_BYTES bytes: its memory of what it has seen would stay as large as that.
    """
    buffer = io.BytesIO()
    pickler = _ModelPickler(buffer, pickle.HIGHEST_PROTOCOL)

    def dump(value: Any) -> bytes:
        pickler.dump(value)
        data = buffer.getvalue()
        pickler.clear_memo()  # or it would keep the value alive
        buffer.seek(0)
        buffer.truncate()
        return data

    return dump


class _ModelPickler(pickle.Pickler):
    """Refuses instances of historical models, which pickle knows by name only, and would restore as today's; and takes
    the content of files along."""

    def reducer_override(self, value: Any) -> Any:
        kind = type(value)  # and not isinstance(), which evaluates lazy objects
        if issubclass(kind, File):
            return reduce_file(value)
        if kind.__module__ == HISTORICAL:
            raise InvalidOperation(
                f"{repr_of(value)} is an instance of a historical model, which would arrive as one of today's: map the "
                "queryset itself, or send primary keys"
            )
        return NotImplemented


def to_wire(value: Any) -> Any:
    """Prepare a value for the way to another process, and try that it can be restored there.

    Raises:
        InvalidOperation: if an instance of a historical model is in it, or a file that is open on disk.
        Exception: whatever the value's own pickling or unpickling raises.
    """
    if type(value) in IMMUTABLE_TYPES:
        return value
    try:
        if (copy := copy_if_flat(value)) is not None:
            return copy
        data = dumps(value)
        pickle.loads(data)
    except Exception as error:
        add_note(error, "poolsave: this is about the return value, which cannot come back from the worker")
        raise
    return Pickled(data)


def from_wire(value: Any) -> Any:
    """Undo `to_wire`, and give the next try what it may change.

    Raises:
        Exception: whatever the value's own unpickling raises.
    """
    kind = type(value)
    if kind is Pickled:
        return pickle.loads(value.data)
    return value.value.copy() if kind is CopyOnUse else value


def pickle_chunk(objects: Sequence[Any]) -> tuple[bytes, dict[int, BaseException]]:
    """Pickle a chunk; gives the bytes, and by offset the errors of objects that cannot be pickled.

    The bytes are those of a column, and whether each object in it was pickled by itself, as it is unless all of them
    are plain or flat: what can change must not be shared by several objects of a chunk, and what cannot be restored
    must fail alone.
    """
    if isinstance(objects, range) and len(objects) < MIN_RANGE_LENGTH:
        objects = [*objects]
    if isinstance(objects, range) or IMMUTABLE_TYPES.issuperset(map(type, objects)) or all_flat(objects):
        return pickle.dumps((objects, False), pickle.HIGHEST_PROTOCOL), {}
    column, errors = _pickled_alone(objects)
    return pickle.dumps((column, True), pickle.HIGHEST_PROTOCOL), errors


def _pickled_alone(objects: Sequence[Any]) -> tuple[list[bytes], dict[int, BaseException]]:
    column: list[bytes] = []
    errors: dict[int, BaseException] = {}
    dump = make_pickler()
    for offset, item in enumerate(objects):
        try:
            data = dump(item)
        except Exception as error:  # whatever the object's own pickling raises is that object's failure
            add_note(error, "poolsave: this is about the object itself, which cannot be sent to a worker")
            errors[offset] = error
            dump = make_pickler()
            continue
        column.append(data)
        if len(data) > MAX_REUSED_BYTES:
            dump = make_pickler()
    return column, errors


def unpickle_chunk(payload: Any, *, lent: bool) -> tuple[list[Any], bool]:
    """Undo `pickle_chunk`; gives a column and whether each object of it was pickled by itself.

    With `lent` each object is for `from_wire`, which gives every try one of its own; else they are bytes if so.
    """
    column, alone = pickle.loads(payload)
    if lent and alone:
        column = [*map(Pickled, column)]
    elif lent and dict in map(type, column):
        column = [*map(CopyOnUse, column)]
    return column, alone


def split_pickled(column: list[Any]) -> tuple[list[Any], dict[int, bytes]]:
    """Part a column into what can be pickled together and, by offset, what is bytes already."""
    sealed = {offset: value.data for offset, value in enumerate(column) if type(value) is Pickled}
    if sealed:
        column = [None if offset in sealed else value for offset, value in enumerate(column)]
    return column, sealed
