"""Outcomes in input order."""

from __future__ import annotations

from collections.abc import Iterator

from ._batches import Batch
from ._engine import Engine

__all__ = ["in_input_order"]


def in_input_order(batches: Iterator[Batch], engine: Engine) -> Iterator[Batch]:
    """Hold batches back until all before them have gone."""
    waiting: dict[int, Batch] = {}
    due = 0
    for arrived in batches:
        waiting[arrived.first] = arrived
        engine.held_back += len(arrived.values)
        while due in waiting:
            batch = waiting.pop(due)
            due += len(batch.values)
            engine.held_back -= len(batch.values)
            yield batch
