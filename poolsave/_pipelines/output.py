"""Outcomes of a pipeline as batches, and errors rewritten for the objects of the input. `PipelineEngine` calls it."""

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
    """Gathers ended records. Those that stand side by side in the input share a batch."""

    def __init__(self) -> None:
        self._batches: list[OutcomeBatch] = []

    def __bool__(self) -> bool:
        return bool(self._batches)

    def take(self) -> list[OutcomeBatch]:
        """Give what has been gathered."""
        batches, self._batches = self._batches, []
        return batches

    def add(self, record: Record, value: Any, worker: int | str | None, outcome: Outcome[Any] | None) -> None:
        """Add a record that has ended."""
        batch = self._open_batch(record, worker)
        offset = len(batch.values)
        if outcome is not None:
            batch.notable[offset] = outcome
        batch.values.append(value)  # type: ignore[attr-defined]
        batch.objects.append(record.origin.item)  # type: ignore[attr-defined]
        batch.seconds.append(record.seconds)  # type: ignore[union-attr]

    def _open_batch(self, record: Record, worker: int | str | None) -> OutcomeBatch:
        index = record.origin.index
        if self._batches and not record.path:
            last = self._batches[-1]
            if not last.path and last.first + len(last.values) == index and last.worker == worker:
                return last
        batch = OutcomeBatch(index, [], array("d"), [], worker, {}, record.path)
        if record.path:
            batch = batch._replace(outcomes_of_object=0 if record.origin.unfinished else record.origin.ended)
        self._batches.append(batch)
        return batch


def annotate_origin(
    error: BaseException, record: Record, stages: Sequence[str], *, never_started: bool = False
) -> None:
    """Rewrite an error's item, index and stage to those of the original input object.

    `stages` are the stages that the error may come from. `never_started` says that the stage needs a value that was
    lost.
    """
    origin = record.origin
    where = f"the stage {stages[0]!r}" if len(stages) == 1 else f"one of the stages {', '.join(map(repr, stages))}"
    add_note(error, f"poolsave: in {where}, with what came of object {origin.index} of the input")
    if record.flaw is not None:
        add_note(error, f"poolsave: on the way there an on_commit callback raised {repr_of(record.flaw)}")
    for cause in exception_chain(error):
        if (is_a(cause, WorkerDied) or is_a(cause, TimedOut)) and cause.item is not None:
            cause.item = origin.item
        elif is_a(cause, ValueLost):
            cause.index = origin.index
            cause.stage = stages[0] if never_started else None
