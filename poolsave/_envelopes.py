"""Bytes for functions, objects, values and errors: what crosses between processes was pickled here, inside a `try`,
in the place where a failure belongs to one object."""

from __future__ import annotations

import io
import pickle
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

from ._plain import PLAIN
from ._sqlstates import sqlstate_of
from .errors import InvalidOperation, RemoteError, WorkerTraceback, text_of

__all__ = [
    "ErrorRecord",
    "dumps",
    "format_traceback",
    "join",
    "pack_error",
    "pack_function",
    "pack_objects",
    "seal_surely",
    "split",
    "unpack_error",
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


def seal(value: Any) -> Any:
    """Prepare a value for the way to another process.

    Raises:
        InvalidOperation: if an instance of a historical model is in it.
        Exception: whatever the value's own pickling raises.
    """
    return value if type(value) in PLAIN else Sealed(dumps(value))


def dumps(value: Any) -> bytes:
    """Pickle what is the user's.

    Raises:
        InvalidOperation: if an instance of a historical model is in it.
        Exception: whatever the value's own pickling raises.
    """
    if "django.db.migrations.state" not in sys.modules:  # nobody has made a historical model in this process
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    buffer = io.BytesIO()
    _Present(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


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
    """Like `seal`, and also try that the value can be restored."""
    if type(value) in PLAIN:
        return value
    try:
        sealed = seal(value)
        if isinstance(sealed, Sealed):
            pickle.loads(sealed.data)
    except Exception as error:
        error.add_note("poolsave: this is about the return value, which cannot come back from the worker")
        raise
    return sealed


def unseal(value: Any) -> Any:
    """Undo `seal`.

    Raises:
        Exception: whatever the value's own unpickling raises.
    """
    return pickle.loads(value.data) if type(value) is Sealed else value


def pack_objects(objects: Sequence[Any]) -> tuple[bytes, dict[int, BaseException]]:
    """Pickle a chunk; gives the bytes, and by offset the errors of objects that cannot be pickled."""
    if isinstance(objects, range) and len(objects) < LONG:
        objects = [*objects]
    if isinstance(objects, range) or PLAIN.issuperset(map(type, objects)):
        return pickle.dumps((objects, {}), pickle.HIGHEST_PROTOCOL), {}
    errors: dict[int, BaseException] = {}
    column: list[Any] = []
    for offset, item in enumerate(objects):
        try:
            column.append(seal(item))
        except Exception as error:  # whatever the object's own pickling raises is that object's failure
            error.add_note("poolsave: this is about the object itself, which cannot be sent to a worker")
            errors[offset] = error
            column.append(None)
    return pickle.dumps(split(column), pickle.HIGHEST_PROTOCOL), errors


def split(column: list[Any]) -> tuple[list[Any], dict[int, bytes]]:
    """Part a column into what can be pickled together and, by offset, what is bytes already."""
    sealed = {offset: value.data for offset, value in enumerate(column) if type(value) is Sealed}
    if sealed:
        column = [None if offset in sealed else value for offset, value in enumerate(column)]
    return column, sealed


def join(column: list[Any], sealed: dict[int, bytes]) -> list[Any]:
    """Undo `split`; what was sealed still is."""
    for offset, data in sealed.items():
        column[offset] = Sealed(data)
    return column


class ErrorRecord(NamedTuple):
    """An exception as data that can always be pickled."""

    class_path: str
    message: str
    arguments: str
    traceback: str
    sqlstate: str | None
    pickled: bytes | None
    """The exception itself, if a round trip in the worker gave the same class."""


def pack_error(error: BaseException) -> ErrorRecord:
    """Describe an exception for the way to another process. Never raises."""
    return ErrorRecord(
        class_path=f"{type(error).__module__}.{type(error).__qualname__}",
        message=text_of(error),
        arguments=_arguments(error),
        traceback=format_traceback(error),
        sqlstate=sqlstate_of(error),
        pickled=_pickled(error),
    )


def unpack_error(record: ErrorRecord) -> BaseException:
    """Give the exception with its own class if possible, else a RemoteError, caused by the worker's traceback."""
    error = _restored(record.pickled)
    if error is None:
        error = RemoteError(record.class_path, record.message, record.arguments, record.sqlstate)
    error.__cause__ = WorkerTraceback(record.traceback, record.sqlstate)
    return error


def format_traceback(error: BaseException) -> str:
    """The traceback as text, from the first frame that is not poolsave's own."""
    try:
        return "".join(traceback.format_exception(type(error), error, _users_part(error.__traceback__)))
    except Exception as secondary:  # an exception whose own methods are broken is still an exception
        return f"{type(error).__qualname__} (its traceback cannot be formatted: {type(secondary).__qualname__})"


def _users_part(frames: TracebackType | None) -> TracebackType | None:
    part = frames
    while part is not None and part.tb_frame.f_globals.get("__package__") == __package__:
        part = part.tb_next
    return part or frames


def _arguments(error: BaseException) -> str:
    try:
        return repr(error.args)
    except Exception as secondary:  # an argument whose repr is broken must not hide the error
        return f"<{type(secondary).__qualname__} in the repr of its arguments>"


def _pickled(error: BaseException) -> bytes | None:
    buffer = io.BytesIO()
    try:
        _AsTheyAre(buffer, pickle.HIGHEST_PROTOCOL).dump(error)
        data = buffer.getvalue()
        copy = pickle.loads(data)
    except Exception:  # whatever the exception's own pickling raises: the record stands in for it
        return None
    return data if type(copy) is type(error) else None


class _AsTheyAre(pickle.Pickler):
    """Has exceptions reduce themselves: what tblib, which Dask installs, registers for them forgets the code of a
    SystemExit."""

    def reducer_override(self, value: Any) -> Any:
        return (
            value.__reduce_ex__(pickle.HIGHEST_PROTOCOL) if issubclass(type(value), BaseException) else NotImplemented
        )


def _restored(data: bytes | None) -> BaseException | None:
    if data is None:
        return None
    try:
        found = pickle.loads(data)
    except Exception:  # possible in the parent though it worked in the worker: the record stands in for it
        return None
    return found if isinstance(found, BaseException) else None
