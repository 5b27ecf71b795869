"""Everything that poolsave raises, built from data so that no handler has to parse a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ._runtime.foreign_exceptions import args_of, class_path_of, is_a, repr_of, set_cause, text_of

if TYPE_CHECKING:
    from .reports import Report

__all__ = [
    "ClusterUnusable",
    "DatabaseUnreachable",
    "InputChanged",
    "InsideTransaction",
    "InvalidOperation",
    "InvalidOption",
    "InvalidParameters",
    "LeaseLost",
    "OperationsFailed",
    "PoolsaveError",
    "RemoteError",
    "RowGone",
    "RunBusy",
    "RunConflict",
    "RunUnfinished",
    "SharedMemoryDatabase",
    "StatusConflict",
    "TimedOut",
    "UnknownBackfill",
    "UnknownRun",
    "ValueLost",
    "WorkerDied",
    "WorkerTraceback",
    "text_of",
]


class PoolsaveError(Exception):
    """The base class of all errors of poolsave."""


class InvalidOption(PoolsaveError, ValueError):
    """An option has a value that cannot work."""

    def __init__(self, name: str, value: object, expected: str, source: str = "") -> None:
        super().__init__(name, value, expected, source)
        self.name = name
        self.value = value
        self.expected = expected
        self.source = source

    def __str__(self) -> str:
        where = f" (from {self.source})" if self.source else ""
        return f"{self.name}={self.value!r}{where} is not valid: {self.expected}"


class InvalidOperation(PoolsaveError, TypeError):
    """A pool cannot run a function, or cannot feed it these objects."""


class InsideTransaction(PoolsaveError):
    """A run was started while the caller has an open transaction.

    Workers have connections of their own. They cannot see the caller's uncommitted rows. For locks that the caller
    holds they would wait for ever, and the database does not recognise that as a deadlock.
    """

    def __init__(self, alias: str, advice: str | None = None) -> None:
        super().__init__(alias, advice)
        self.alias = alias
        self.advice = advice

    def __str__(self) -> str:
        advice = self.advice or (
            "leave the atomic() block before calling the pool; in a migration set `atomic = False` on the Migration "
            'class; to stay inside the transaction use executor="serial", in tests poolsave.testing.serial_saves()'
        )
        return (
            f"the database {self.alias!r} is inside a transaction, which workers can neither see nor wait for: {advice}"
        )


class ClusterUnusable(PoolsaveError):
    """A cluster has no worker for a run, or a worker with other versions than the caller."""


class DatabaseUnreachable(PoolsaveError):
    """A database cannot be connected to: a run is refused, or a server has gone in the middle of a run.

    In the middle of a run it is raised after 3 seconds without any connection. If the server says that it is starting,
    or that it has too many connections, it is raised after 30 seconds more (on PostgreSQL, if it says so in English).
    `report` has the outcomes: what was at work has failed or is lost, and the rest is skipped. `reason` is the driver's
    message, and `__cause__` the error of the object that had no connection.
    """

    def __init__(self, alias: str, reason: str) -> None:
        super().__init__(alias, reason)
        self.alias = alias
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"cannot connect to the database {self.alias!r} ({self.reason}): check that its server runs and takes "
            f"connections, and that settings.DATABASES has its address, name, user and password"
        )


SHOWN = 300
"""Characters of each of two texts that differ."""


def _around_difference(old: object, new: object) -> tuple[object, object]:
    """Give two texts, of long ones what is around the first difference."""
    if not (isinstance(old, str) and isinstance(new, str)) or max(len(old), len(new)) <= SHOWN:
        return old, new
    pairs = enumerate(zip(old, new, strict=False))
    same = next((at for at, (one, other) in pairs if one != other), min(len(old), len(new)))
    start = max(0, same - SHOWN // 4)
    return _part(old, start), _part(new, start)


def _part(text: str, start: int) -> str:
    end = start + SHOWN
    return f"{'...' if start else ''}{text[start:end]}{'...' if len(text) > end else ''}"


class RunConflict(PoolsaveError):
    """A durable run goes on with what it began with, and it is given something else.

    `entry` says what differs, such as the function or the rows; `old` is what the run has, `new` what was given.
    """

    def __init__(self, name: str, entry: str, old: object, new: object) -> None:
        super().__init__(name, entry, old, new)
        self.name = name
        self.entry = entry
        self.old = old
        self.new = new

    def __str__(self) -> str:
        old, new = _around_difference(self.old, self.new)
        return (
            f"the run {self.name!r} began with another {self.entry}: {old!r}, and now it is {new!r}; give "
            f"another run another name, or begin anew after `manage.py poolsave forget {self.name}`"
        )


class StatusConflict(RunConflict):
    """The status of a durable run does not allow what is asked, `action`. `old` and `status` are what it is.

    `advice` says what to do.
    """

    def __init__(self, name: str, action: str, status: str, advice: str = "") -> None:
        super().__init__(name, "status", status, action)
        self.args = (name, action, status, advice)  # by these it is pickled
        self.action = action
        self.status = status
        self.advice = advice

    def __str__(self) -> str:
        text = f"the run {self.name!r} is {self.status}, so that it cannot {self.action}"
        return f"{text}: {self.advice}" if self.advice else text


class RunUnfinished(PoolsaveError):
    """A migration needs a durable run, and that run is not finished, or has unresolved failures.

    `status` is that of the run, `figures` how far it is, in words, `unresolved` the number of its failures.
    """

    def __init__(self, name: str, status: str, figures: str, unresolved: int) -> None:
        super().__init__(name, status, figures, unresolved)
        self.name = name
        self.status = status
        self.figures = figures
        self.unresolved = unresolved

    def __str__(self) -> str:
        failures = f", with {self.unresolved} unresolved failures" if self.unresolved else ""
        return (
            f"this migration needs the run {self.name!r}, which is {self.status} ({self.figures}{failures}): see "
            f"`manage.py poolsave status {self.name}`, and have it finished before you migrate"
        )


class UnknownRun(PoolsaveError, LookupError):
    """The ledger in a database has no run of that name. `known` are the latest ones."""

    def __init__(self, name: str, alias: str, known: Sequence[str] = ()) -> None:
        super().__init__(name, alias, known)
        self.name = name
        self.alias = alias
        self.known = known

    def __str__(self) -> str:
        return f"there is no run {self.name!r} in the database {self.alias!r}: {_known(self.known, 'there is none')}"


class UnknownBackfill(PoolsaveError, LookupError):
    """No app registers a backfill of that name. `known` are those that are registered."""

    def __init__(self, name: str, known: Sequence[str] = ()) -> None:
        super().__init__(name, known)
        self.name = name
        self.known = known

    def __str__(self) -> str:
        none = "no backfills.py of an app in INSTALLED_APPS registers any by @poolsave.backfill(name, queryset=...)"
        return f"there is no backfill {self.name!r}: {_known(self.known, none)}"


class InvalidParameters(PoolsaveError, ValueError):
    """A backfill's form refuses its parameters. `errors` are the form's texts by the name of the parameter."""

    def __init__(self, name: str, errors: Mapping[str, Sequence[str]]) -> None:
        super().__init__(name, errors)
        self.name = name
        self.errors = errors

    def __str__(self) -> str:
        texts = "; ".join(f"{field}: {' '.join(texts)}" for field, texts in self.errors.items())
        return f"the parameters of the backfill {self.name!r} are not valid: {texts}"


class RunBusy(RunConflict):
    """Another process works on a durable run: `holder`. Its last heartbeat was at `heartbeat_at`."""

    def __init__(self, name: str, holder: str, heartbeat_at: object) -> None:
        super().__init__(name, "holder", holder, None)
        self.args = (name, holder, heartbeat_at)  # by these it is pickled
        self.holder = holder
        self.heartbeat_at = heartbeat_at

    def __str__(self) -> str:
        return (
            f"{self.holder} works on the run {self.name!r}, and was last heard of at {self.heartbeat_at}: wait until "
            f"it ends, or pause it by `manage.py poolsave pause {self.name}`; it is taken over when it has been silent "
            "for stale_after seconds, or for ten times as long if it is seen to run on this machine"
        )


class InputChanged(RunConflict):
    """An input that is not a queryset differs from what it was: `entry` says where, by its first difference."""

    def __str__(self) -> str:
        return (
            f"the input of the run {self.name!r} has changed {self.entry}: it was {self.old!r}, and now it is "
            f"{self.new!r}; give the same input, or give the new one another name"
        )


class LeaseLost(PoolsaveError):
    """Another process has taken a durable run over. What this session had not committed by then is rolled back."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return (
            f"another process has taken the run {self.name!r} over, and commits what is left of it: look at it by "
            f"`manage.py poolsave status {self.name}`, and see that only one process works on a run"
        )


class SharedMemoryDatabase(PoolsaveError):
    """A worker would not see the caller's in-memory SQLite database."""

    def __init__(self, alias: str, name: str, ways_out: str) -> None:
        super().__init__(alias, name, ways_out)
        self.alias = alias
        self.name = name
        self.ways_out = ways_out

    def __str__(self) -> str:
        return (
            f"the database {self.alias!r} is SQLite in memory ({self.name!r}), which these workers cannot see: use "
            f"{self.ways_out}, or a database file (in tests: "
            f'DATABASES["{self.alias}"]["TEST"]["NAME"])'
        )


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


def _known(names: Sequence[str], none: str) -> str:
    return f"give one of {', '.join(map(repr, names))}" if names else none


def _shorten(item: object, limit: int = 200) -> str:
    text = repr_of(item)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
