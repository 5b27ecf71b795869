"""Errors of single objects, as their outcomes have them, and the one that raises them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._runtime.foreign_exceptions import args_of, class_path_of, is_a, repr_of, set_cause, text_of
from ._base import PoolsaveError

if TYPE_CHECKING:
    from ..reports import Report


UNGUARDED = (
    "if there is a traceback of your script above: workers that are not forked import the script again, so start the "
    'run under if __name__ == "__main__":'
)


class WorkerDied(PoolsaveError):
    """The worker that ran an object ended before it could answer.

    `exitcode` is the exit status of the process (negative: the number of the signal; None: unknown). `signal` is the
    signal's name or None. `item` is the object that the worker was running. `details` is what the process wrote as it
    died (faulthandler), or what else is known. With `afterwards` the worker had finished this object, but not yet
    reported it, and was no longer running it; `item` is None.
    """

    def __init__(
        self,
        exitcode: int | None,
        signal: str | None = None,
        item: object = None,
        details: str = "",
        *,
        afterwards: bool = False,
    ) -> None:
        super().__init__(exitcode, signal, item, details)
        self.exitcode = exitcode
        self.signal = signal
        self.item = item
        self.details = details
        self.afterwards = afterwards

    def __str__(self) -> str:
        how = f"was killed by {self.signal}" if self.signal else f"ended with exit status {self.exitcode}"
        if self.exitcode is None and self.signal is None:
            return (
                f"the worker that had {_shorten(self.item)} is gone, and it is not known how far it came{self._tail()}"
            )
        if self.afterwards:
            return f"the worker {how} after it had finished this object, but before it reported so{self._tail()}"
        if self.item is None:
            guard = f"; {UNGUARDED}" if self.exitcode == 1 else ""
            return f"the worker {how} before it began an object{guard}{self._tail()}"
        what = f" while it ran {_shorten(self.item)}"
        return f'the worker {how}{what}; to find out why, run this object with executor="serial"{self._tail()}'

    def _tail(self) -> str:
        return f"\n{self.details.rstrip()}" if self.details else ""


class TimedOut(PoolsaveError, TimeoutError):
    """An object took longer than its `timeout`, in seconds from its own start."""

    def __init__(self, seconds: float, item: object = None) -> None:
        super().__init__(seconds, item)
        self.seconds = seconds
        self.item = item

    def __str__(self) -> str:
        what = "the object" if self.item is None else _shorten(self.item)
        return f"{what} took longer than timeout={self.seconds!r} seconds"


class RemoteError(PoolsaveError):
    """Replaces an exception whose class the caller cannot import, such as one that is defined in a function.

    `class_path` is the dotted path of the original class, `message` its text, `arguments` the repr of its args.
    """

    def __init__(self, class_path: str, message: str, arguments: str = "()", sqlstate: str | None = None) -> None:
        super().__init__(class_path, message, arguments, sqlstate)
        self.class_path = class_path
        self.message = message
        self.arguments = arguments
        self.sqlstate = sqlstate

    def __str__(self) -> str:
        return f"{self.class_path}: {self.message}" if self.message else self.class_path


class RowGone(PoolsaveError):
    """The reason for SKIPPED: the row was deleted, or no longer matched, before a worker fetched it."""

    def __init__(self, model: str, key: object) -> None:
        super().__init__(model, key)
        self.model = model
        self.key = key

    def __str__(self) -> str:
        return f"the row {_shorten(self.key)} of {self.model} is gone, or no longer matches the queryset"


class ValueLost(PoolsaveError):
    """The object succeeded, but its value did not arrive; the `__cause__` says why.

    `stage` is the stage of a pipeline that needed the value and so did not run; else None.
    """

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index
        self.stage: str | None = None

    def __str__(self) -> str:
        if self.stage is not None:
            return f"the stage {self.stage!r} never began: the value that it needs for object {self.index} was lost"
        return f"object {self.index} succeeded, but its return value was lost on the way back"


class WorkerTraceback(PoolsaveError):
    """The `__cause__` of an exception that came from a worker: the traceback there as text, and the SQLSTATE."""

    def __init__(self, text: str, sqlstate: str | None = None) -> None:
        super().__init__(text, sqlstate)
        self.text = text
        self.sqlstate = sqlstate

    def __str__(self) -> str:
        return f"\n{self.text.rstrip()}"


class OperationsFailed(ExceptionGroup[Exception], PoolsaveError):
    """Some objects failed or were lost. `report` has the outcomes, `exceptions` one error for each of its `failures`.

    The group contains a `RemoteError` in place of an error that is not an `Exception`, such as SystemExit.
    """

    report: Report[Any]

    def __new__(cls, message: str, errors: Sequence[BaseException], report: Report[Any]) -> OperationsFailed:
        group = super().__new__(cls, message, [_as_exception(error) for error in errors])
        group.report = report
        return group

    def __init__(self, message: str, errors: Sequence[BaseException], report: Report[Any]) -> None:
        super().__init__(message, [_as_exception(error) for error in errors])

    def derive(self, excs: Sequence[Exception], /) -> OperationsFailed:  # type: ignore[override]
        """Keep the report when the group is split, as `except*` does."""
        return OperationsFailed(self.message, excs, self.report)

    def __reduce__(self) -> tuple[Any, ...]:
        return OperationsFailed, (self.message, list(self.exceptions), self.report)


def stand_in_for(error: BaseException) -> RemoteError:
    """Make a RemoteError that replaces an exception where only an `Exception` is allowed."""
    stand_in = RemoteError(class_path_of(error), text_of(error), repr_of(args_of(error)))
    set_cause(stand_in, error)
    return stand_in


def _as_exception(error: BaseException) -> Exception:
    return error if is_a(error, Exception) else stand_in_for(error)


def _shorten(item: object, limit: int = 200) -> str:
    text = repr_of(item)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
