"""Pickles functions, objects and values for other processes.

Each is pickled inside a `try`, at the point where a failure belongs to one object. The executors only pass the bytes
on. The engine and `_worker` call this; exceptions are in `exceptions.py`, historical models in `models.py`.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter, methodcaller
from typing import Any

from django.core.files.base import File

from .._runtime.foreign_exceptions import add_note, repr_of, text_of
from .._runtime.script import is_guarded, is_typed, missing_script
from ..errors import InvalidOperation
from .files import reduce_file
from .plain import IMMUTABLE_TYPES, all_flat, copy_if_flat

MIN_RANGE_LENGTH = 100
"""The shortest range that is pickled as a range. A shorter one is smaller and quicker as a list of numbers."""
HISTORICAL = "__fake__"
"""The `__module__` of the models in a migration's state, set by Django."""


class Pickled:
    """A value that was pickled by itself, so that only its own object fails if it cannot be restored."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class CopyOnUse:
    """A flat dictionary; each try gets a copy."""

    __slots__ = ("value",)

    def __init__(self, value: dict[Any, Any]) -> None:
        self.value = value


def pickle_function(function: Any, constants: Mapping[str, Any] | None = None) -> bytes:
    """Pickle a function and its bound constants, for workers that do not share the caller's memory.

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


def check_in_script(function: Any) -> None:
    """Refuse a function of `__main__` that workers which are not forked do not find: they import the caller's script.

    Raises:
        InvalidOperation: naming the function and the ways out.
    """
    if getattr(function, "__module__", None) != "__main__":
        return
    main = sys.modules["__main__"]
    has_script = getattr(main, "__spec__", None) is not None or (hasattr(main, "__file__") and not missing_script())
    code = getattr(getattr(function, "func", function), "__code__", None)
    if not has_script or (code is not None and is_typed(code)):
        raise InvalidOperation(
            f"{getattr(function, '__qualname__', repr(function))} was typed into a shell or notebook, where workers "
            "that are not forked do not find it: put it into a module and import it from there, or use "
            'executor="thread" or start_method="fork" (the default only while no other thread is alive)'
        )
    if code is not None and is_guarded(code):
        raise InvalidOperation(
            f'{getattr(function, "__qualname__", repr(function))} is defined under if __name__ == "__main__":, where '
            "workers that are not forked do not find it: define it at the top of the script or of a module, or use "
            'executor="thread" or start_method="fork" (the default only while no other thread is alive)'
        )


def dumps(value: Any) -> bytes:
    """Pickle a value of the user's.

    Raises:
        InvalidOperation: if an instance of a historical model is in it, or a file that is open on disk.
        Exception: whatever the value's own pickling raises.
    """
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


class _Reductions(dict[type, Callable[[Any], Any]]):
    """How instances of each class are pickled. It is asked once per class, `reducer_override` for each part of each
    object."""

    def __missing__(self, kind: type) -> Callable[[Any], Any]:
        if kind.__module__ == HISTORICAL:  # made anew for each state: not kept
            return _refuse_historical
        if issubclass(kind, File):
            reduction: Callable[[Any], Any] = reduce_file
        elif kind in copyreg.dispatch_table:
            return copyreg.dispatch_table[kind]
        elif issubclass(kind, type):  # an instance is a class, found by its name
            reduction = attrgetter("__qualname__")
        else:
            reduction = methodcaller("__reduce_ex__", pickle.HIGHEST_PROTOCOL)
        self[kind] = reduction
        return reduction


def _refuse_historical(instance: Any) -> Any:
    # pickle would restore it as one of the current model
    raise InvalidOperation(
        f"{repr_of(instance)} is an instance of a historical model, which would arrive as one of today's: map the "
        "queryset itself, or send primary keys"
    )


class _Pickler(pickle.Pickler):
    dispatch_table = _Reductions()


def to_wire(value: Any) -> Any:
    """Prepare a value for another process, and check that it can be restored.

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
    """Restore a value of `to_wire`. Each call gives a value that the caller may change.

    Raises:
        Exception: whatever the value's own unpickling raises.
    """
    kind = type(value)
    if kind is Pickled:
        return pickle.loads(value.data)
    return value.value.copy() if kind is CopyOnUse else value


def pickle_chunk(objects: Sequence[Any]) -> tuple[bytes, dict[int, BaseException]]:
    """Pickle a chunk; gives the bytes, and by offset the errors of objects that cannot be pickled.

    The bytes contain a column, and whether each object in it was pickled by itself. Only plain or flat objects are
    pickled together: objects of a chunk must not share anything mutable, and one that cannot be restored must fail
    alone.
    """
    if isinstance(objects, range) and len(objects) < MIN_RANGE_LENGTH:
        objects = [*objects]
    if isinstance(objects, range) or IMMUTABLE_TYPES.issuperset(map(type, objects)) or all_flat(objects):
        return pickle.dumps((objects, False), pickle.HIGHEST_PROTOCOL), {}
    column, errors = _pickle_each(objects)
    return pickle.dumps((column, True), pickle.HIGHEST_PROTOCOL), errors


def _pickle_each(objects: Sequence[Any]) -> tuple[list[bytes], dict[int, BaseException]]:
    column: list[bytes] = []
    errors: dict[int, BaseException] = {}
    for offset, item in enumerate(objects):
        try:
            column.append(dumps(item))
        except Exception as error:  # whatever the object's own pickling raises is that object's failure
            add_note(error, "poolsave: this is about the object itself, which cannot be sent to a worker")
            errors[offset] = error
    return column, errors


def unpickle_chunk(payload: Any, *, for_tries: bool) -> tuple[list[Any], bool]:
    """Restore a chunk; gives a column, and whether each object in it was pickled by itself.

    With `for_tries`, `from_wire` gives every try an object of its own. Else objects pickled by themselves are bytes.
    """
    column, separately = pickle.loads(payload)
    if for_tries and separately:
        column = [*map(Pickled, column)]
    elif for_tries and dict in map(type, column):
        column = [*map(CopyOnUse, column)]
    return column, separately


def split_pickled(column: list[Any]) -> tuple[list[Any], dict[int, bytes]]:
    """Split a column into values to pickle together and, by offset, bytes of values already pickled."""
    pickled = {offset: value.data for offset, value in enumerate(column) if type(value) is Pickled}
    if pickled:
        column = [None if offset in pickled else value for offset, value in enumerate(column)]
    return column, pickled
