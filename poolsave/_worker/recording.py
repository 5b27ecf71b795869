"""What a durable run writes into its ledger in the transactions of the work. `_durable.recorder` does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ..executors.protocol import Marks


class Recorder(Protocol):
    """Writes the row of a transaction as its last statement. One per worker."""

    @property
    def records(self) -> bool:
        """Whether it writes at all. If not, the caller records what has ended, and objects may run twice."""
        ...

    @property
    def lost(self) -> BaseException | None:
        """The error that says that another session has the run, so that nothing here is committed any more."""
        ...

    def begin(self, payload: Any) -> Any:
        """Take the place of a chunk in the run out of its payload, and give the rest of it."""
        ...

    def enter(self, offset: int) -> None:
        """Have `poolsave.current()` tell of an object of the chunk."""
        ...

    def leave(self) -> None:
        """Have it tell of none."""
        ...

    def record_object(self, offset: int, marks: Marks, *, callbacks: bool) -> int:
        """Record an object that returns, in its open transaction. Gives the transaction's note, as marks do.

        Raises:
            LeaseLost: if another session has the run, or another worker the chunk.
        """
        ...

    def record_chunk(self, first: int, results: Sequence[Any], marks: Marks, *, callbacks: bool) -> int:
        """Record the objects of a transaction from `first` on, and those of them that failed. As `record_object`."""
        ...


class RecorderSpec(Protocol):
    """What a worker makes its recorder from. It is pickled before Django is set up."""

    def open(self) -> Recorder: ...
