"""Ranges that workers write are joined while the run goes on, and no answer of the ledger is lost by that."""

import os
import signal

import pytest

from poolsave import Run
from poolsave._durable import bookkeeping
from poolsave._durable.chunks import ChunkTable
from poolsave.ledger.models import Chunk
from tests.support.durable import counts, entries, ledger, make_things, visited
from tests.support.processes import workers_of

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


def test_ranges_are_joined_while_workers_write_and_die(alias, monkeypatch):
    monkeypatch.setattr(bookkeeping, "MERGE_AFTER", 5)
    monkeypatch.setattr(bookkeeping, "INTERVAL", 0.02)
    joined = []
    merge = ChunkTable.merge_below

    def noted(table, sequence):
        before = Chunk.objects.using(alias).count()
        merge(table, sequence)
        joined.append(before - Chunk.objects.using(alias).count())

    monkeypatch.setattr(ChunkTable, "merge_below", noted)

    def kill(outcome):
        if outcome.index in (60, 120):
            os.kill(workers_of(os.getpid())[0], signal.SIGKILL)

    rows = make_things(alias, 200)
    rows.filter(pk__in=[50, 51, 130]).update(group=5)
    operation = counts.using(databases=(alias,), chunksize=4, workers=2)
    report = operation.map(rows, run=Run("joined", using=alias), on_outcome=kill)
    assert (report.succeeded, report.failed, report.lost) == (197, 3, 0)
    assert visited(alias) == {pk: int(pk not in (50, 51, 130)) for pk in range(1, 201)}
    assert entries(alias) == [pk for pk in range(1, 201) if pk not in (50, 51, 130)]
    assert ledger(alias, "joined")[1] == [("", "200", 197, 3, 0)]
    assert max(joined) > 5
