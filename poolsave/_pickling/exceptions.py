"""Exceptions as data, so that no exception's own methods can break its way from a worker to the caller."""

from __future__ import annotations

import pickle
from typing import NamedTuple

from .._db.error_codes import sqlstate_of
from .._runtime.foreign_exceptions import args_of, class_path_of, is_a, repr_of, set_cause, text_of
from ..errors import RemoteError, WorkerTraceback
from .exception_parts import pickle_exception
from .tracebacks import format_traceback


class ExceptionRecord(NamedTuple):
    """An exception as data that can always be pickled."""

    class_path: str
    message: str
    arguments: str
    traceback: str
    sqlstate: str | None
    pickled: bytes | None
    """The pickled exception, if unpickling it in the worker gave the same class."""


def record_exception(error: BaseException, text: str | None = None) -> ExceptionRecord:
    """Make a record of an exception for another process. Raises nothing but KeyboardInterrupt.

    `text` is that of its traceback, if there is one already.
    """
    return ExceptionRecord(
        class_path=class_path_of(error),
        message=text_of(error),
        arguments=repr_of(args_of(error)),
        traceback=format_traceback(error) if text is None else text,
        sqlstate=sqlstate_of(error),
        pickled=pickle_exception(error),
    )


def restore_exception(record: ExceptionRecord) -> BaseException:
    """Give the exception with its own class if possible, else a RemoteError, caused by the worker's traceback."""
    error = _restored(record.pickled)
    if error is None:
        error = RemoteError(record.class_path, record.message, record.arguments, record.sqlstate)
    set_cause(error, WorkerTraceback(record.traceback, record.sqlstate))
    return error


def _restored(data: bytes | None) -> BaseException | None:
    if data is None:
        return None
    try:
        value = pickle.loads(data)
    except KeyboardInterrupt:
        raise
    except BaseException:  # it may fail here though it worked in the worker: the record replaces it
        return None
    return value if is_a(value, BaseException) else None
