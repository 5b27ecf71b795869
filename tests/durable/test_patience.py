"""A durable run that throttles hold is paused after its patience, says why, and goes on from there."""

import pytest

from poolsave import Run
from poolsave.ledger.models import Run as Row
from poolsave.throttles import Pace
from tests.support.durable import counts, make_things, visited

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


def test_a_run_that_is_held_pauses_and_goes_on(looks_every):
    looks_every(0.05)
    rows, looks, reasons = make_things("postgres", 20), [], []

    def closes():
        looks.append(1)
        reasons.append(Row.objects.using("postgres").get(name="held").throttle)
        return None if len(looks) < 3 else (0.0, "the shop is busy")

    operation = counts.using(databases=("postgres",), executor="serial", chunksize=1)
    report = operation.using(throttle=[closes, Pace(50)], patience=1.5).map(rows, run=Run("held", using="postgres"))
    row = Row.objects.using("postgres").get(name="held")
    assert (row.status, row.stop_code) == ("paused", "throttle")
    assert row.stop_reason == report.stopped == "throttles let nothing start for 1.5 s (patience): the shop is busy"
    assert "the shop is busy" in reasons
    assert row.throttle == ""
    assert 0 < report.succeeded < 20
    assert operation.map(rows, run=Run("held", using="postgres")).run.status == "finished"
    assert set(visited("postgres").values()) == {1}


def test_no_patience_is_lost_while_something_starts(looks_every):
    looks_every(0.05)
    rows = make_things("postgres", 20)
    operation = counts.using(databases=("postgres",), executor="serial", chunksize=1, throttle=lambda: 0.01)
    assert operation.using(patience=0.01).map(rows, run=Run("slow", using="postgres")).run.status == "finished"
