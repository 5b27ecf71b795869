"""What has come out of a pipeline, gathered into batches, and the names that its errors are given."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

from .._reports.batches import OutcomeBatch
from .._reports.causes import exception_chain
from .._runtime.foreign_exceptions import add_note, is_a, repr_of
from ..errors import TimedOut, ValueLost, WorkerDied
from ..outcomes import Outcome
from .segment import Record


class OutputBatches:
    """Ends of travellers, of which those that stand side by side in the input share a batch."""

    def __init__(self) -> None:
        self._batches: list[OutcomeBatch] = []

    def __bool__(self) -> bool:
        return bool(self._batches)

    def take(self) -> list[OutcomeBatch]:
        """Give what has been gathered."""
        batches, self._batches = self._batches, []
        return batches

    def add(self, traveller: Record, value: Any, worker: int | str | None, outcome: Outcome[Any] | None) -> None:
        """One has ended."""
        batch = self._open_batch(traveller, worker)
        place = len(batch.values)
        if outcome is not None:
            batch.notable[place] = outcome
        batch.values.append(value)  # type: ignore[attr-defined]
        batch.objects.append(traveller.origin.item)  # type: ignore[attr-defined]
        batch.seconds.append(traveller.seconds)  # type: ignore[union-attr]

    def _open_batch(self, traveller: Record, worker: int | str | None) -> OutcomeBatch:
        index = traveller.origin.index
        if self._batches and not traveller.path:
            last = self._batches[-1]
            if not last.path and last.first + len(last.values) == index and last.worker == worker:
                return last
        batch = OutcomeBatch(index, [], array("d"), [], worker, {}, traveller.path)
        self._batches.append(batch)
        return batch


def annotate_origin(
    error: BaseException, traveller: Record, stages: Sequence[str], *, never_began: bool = False
) -> None:
    """Let an error that was made for a value on its way tell of the object that it came from, and of its stage, which
    may be any of several, or one that never began it."""
    origin = traveller.origin
    where = f"the stage {stages[0]!r}" if len(stages) == 1 else f"one of the stages {', '.join(map(repr, stages))}"
    add_note(error, f"poolsave: in {where}, with what came of object {origin.index} of the input")
    if traveller.flaw is not None:
        add_note(error, f"poolsave: on the way there an on_commit callback raised {repr_of(traveller.flaw)}")
    for found in exception_chain(error):
        if (is_a(found, WorkerDied) or is_a(found, TimedOut)) and found.item is not None:
            found.item = origin.item
        elif is_a(found, ValueLost):
            found.index = origin.index
            found.stage = stages[0] if never_began else None
