"""Batches of a plain run in input order. A `Run` calls it; pipelines order outcomes by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from .._reports.batches import OutcomeBatch


class OrderedEngine(Protocol):
    """An engine that counts what waits here for its window."""

    undelivered: int


def in_input_order(batches: Iterator[OutcomeBatch], engine: OrderedEngine) -> Iterator[OutcomeBatch]:
    """Hold batches back until all before them have left."""
    waiting: dict[int, OutcomeBatch] = {}
    next_index = 0
    for batch in batches:
        waiting[batch.first] = batch
        engine.undelivered += len(batch.values)
        while next_index in waiting:
            ready = waiting.pop(next_index)
            next_index += len(ready.values)
            engine.undelivered -= len(ready.values)
            yield ready
