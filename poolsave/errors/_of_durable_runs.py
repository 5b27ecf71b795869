"""Errors of durable runs, of backfills, and of migrations that wait for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ._base import PoolsaveError

SHOWN = 300
"""Characters of each of two texts that differ."""


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


class UnknownCause(PoolsaveError, LookupError):
    """No failure of a run has that cause. `known` are causes that it has."""

    def __init__(self, name: str, cause: str, known: Sequence[str] = ()) -> None:
        super().__init__(name, cause, known)
        self.name = name
        self.cause = cause
        self.known = known

    def __str__(self) -> str:
        none = "the run has no failures"
        return f"no failure of the run {self.name!r} has the cause {self.cause!r}: {_known(self.known, none)}"


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


def _known(names: Sequence[str], none: str) -> str:
    return f"give one of {', '.join(map(repr, names))}" if names else none


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
