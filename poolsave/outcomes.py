"""How an object ends: its status, its outcome, and the value by which a stage ends it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ._runtime.foreign_exceptions import repr_of

__all__ = ["DROP", "Outcome", "Status"]

R = TypeVar("R")


class _Drop(enum.Enum):  # an enumeration is the same object in every process
    DROP = "drop"

    def __repr__(self) -> str:
        return "poolsave.DROP"


DROP: Any = _Drop.DROP
"""A stage of a pipeline returns it to end the object there: the object enters no further stage and counts as dropped.

Type checkers take it for any type, so a stage is annotated with the type of its other values. What the stage has saved
stays. An operation that is mapped by itself gives it as an ordinary value.
"""


class Status(enum.StrEnum):
    """How an object ended; every object that is fed in ends in exactly one of these."""

    SUCCEEDED = "succeeded"
    """Its transaction was committed (`transaction=None`: the function returned)."""
    FAILED = "failed"
    """It raised, or its worker died, and it is known to be rolled back (`transaction=None`: it raised). What it wrote
    on databases that the option `databases` does not name is not covered by that."""
    LOST = "lost"
    """Unknown: the connection or the worker was lost during its COMMIT, or while it ran without a transaction."""
    SKIPPED = "skipped"
    """It was never started; in a pipeline not the stage that the outcome names, and what earlier ones saved stays."""
    DROPPED = "dropped"
    """A stage of a pipeline ended it by `DROP`, or gave nothing to go on with (`expand`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Generic[R]):
    """The end of one object, as a value.

    `value` means something only when `status` is SUCCEEDED. A success whose worker died before it could hand the
    value over, or whose `on_commit` callback raised, is a success all the same: its `error` says what is missing.
    """

    index: int
    """The object's index in the input, from 0."""
    status: Status
    value: R | None = None
    error: BaseException | None = None
    traceback: str | None = None
    """The traceback in the worker, as text."""
    item: Any = None
    """The object itself: always if it did not succeed, else with `keep="all"`."""
    attempts: int = 1
    """How often the function was called for the object; 0 if it was skipped."""
    seconds: float = 0.0
    """The time from its start to its end in the worker, all attempts and pauses included."""
    worker: int | str | None = None
    """The id of the worker process, or the name of the thread."""
    stage: str | None = None
    """In a pipeline: the name of the stage that the object ended in, unless it passed all of them. "clean + enrich" if
    it was lost in one of these stages, which shared a worker, and it is unknown in which."""

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return self.status is Status.SUCCEEDED

    def __repr__(self) -> str:
        result = f"value={repr_of(self.value)}" if self.ok and self.error is None else f"error={repr_of(self.error)}"
        return f"<Outcome {self.index} {self.status} {result}>"
