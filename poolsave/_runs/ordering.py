"""Outcomes in input order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from .._reports.batches import OutcomeBatch


class Holding(Protocol):
    """An engine, which is told how much has not left yet."""

    held_back: int


def in_input_order(batches: Iterator[OutcomeBatch], engine: Holding) -> Iterator[OutcomeBatch]:
    """Hold batches back until all before them have gone."""
    waiting: dict[int, OutcomeBatch] = {}
    due = 0
    for arrived in batches:
        waiting[arrived.first] = arrived
        engine.held_back += len(arrived.values)
        while due in waiting:
            batch = waiting.pop(due)
            due += len(batch.values)
            engine.held_back -= len(batch.values)
            yield batch
