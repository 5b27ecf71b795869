"""One process works on a run at a time: it can be paused and taken over, and says why it has stopped."""

import multiprocessing
import os
import signal
import time
from datetime import timedelta

import pytest
from django.db import connections
from django.db.models import QuerySet
from django.utils import timezone

from poolsave import LeaseLost, Run, RunBusy, RunConflict, StatusConflict, pooled_operation
from poolsave.ledger import control
from poolsave.ledger import models as tables
from tests.conftest import needs_mariadb, wait_until
from tests.models import Thing
from tests.support.durable import counts, entries, ledger, make_things, visited

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")
ON = "postgres"


@pytest.fixture
def rows():
    return make_things(ON, 80)


@pytest.fixture
def operation():
    return counts.using(databases=(ON,), chunksize=1, window=4)


def once(call):
    """Give a callable for `on_outcome` that does this at the tenth outcome, and then slowly."""
    seen = []

    def at_tenth(outcome):
        seen.append(outcome)
        if len(seen) == 10:
            call()
        elif len(seen) > 10:
            time.sleep(0.02)  # or all would have ended before the heartbeat that looks for a pause

    return at_tenth


def check_rest(operation, rows, name):
    """What was stopped goes on, and each row was counted once."""
    operation.map(rows, run=name)
    assert visited(ON) == dict.fromkeys(range(1, 81), 1)
    assert entries(ON) == [*range(1, 81)]
    assert ledger(ON, name)[1] == [("", "80", 80, 0, 0)]


def test_shortest_slice_does_something(rows, monkeypatch):
    monkeypatch.setattr("poolsave._durable.bookkeeping.INTERVAL", 0.0)
    operation = counts.using(executor="serial", databases=(ON,), workers=1, start_method=None, chunksize=20)
    sessions = 0
    while operation.map(rows, run=Run("short", slice=1e-6)).run.status != "finished":
        sessions += 1
        assert sessions <= len(rows)
    assert sessions > 2
    assert visited(ON) == dict.fromkeys(range(1, 81), 1)


def test_second_caller_is_told_of_the_first(rows, operation):
    refused = []

    def try_too():
        with pytest.raises(RunBusy, match=rf"process {os.getpid()} works on the run 'busy', and was last heard of at"):
            operation.map(rows, run="busy")
        refused.append(True)

    operation.map(rows, run="busy", on_outcome=once(try_too))
    assert refused
    assert sum(visited(ON).values()) == 80


def test_paused_run_stops_soon_and_goes_on(rows, operation):
    report = operation.map(rows, run="paused", on_outcome=once(lambda: control.pause("paused", by="ann", using=ON)))
    assert 10 <= report.succeeded < 80
    run = ledger(ON, "paused")[0]
    assert (run.status, run.stop_code, run.stop_reason, run.done) == (
        "paused", "operator", "paused by ann", report.succeeded
    )  # fmt: skip
    check_rest(operation, rows, "paused")


def test_cancelled_run_begins_only_anew(rows, operation):
    report = operation.map(rows, run="gone", on_outcome=once(lambda: control.cancel("gone", using=ON)))
    assert report.run.status == ledger(ON, "gone")[0].status == "cancelled"
    with pytest.raises(StatusConflict, match="the run 'gone' is cancelled, so that it cannot go on: begin anew"):
        operation.map(rows, run="gone")
    Thing.objects.using(ON).update(visits=0)
    assert operation.map(rows, run=Run("gone", fresh=True)).succeeded == 80
    assert ledger(ON, "gone")[1] == [("", "80", 80, 0, 0)]


@pytest.mark.parametrize(("signum", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_signal_pauses_and_loses_nothing_in_flight(rows, operation, signum, error):
    with pytest.raises(error) as raised:
        operation.map(rows, run="signalled", on_outcome=once(lambda: os.kill(os.getpid(), signum)))
    report = raised.value.report
    run = ledger(ON, "signalled")[0]
    assert (run.status, run.stop_code, report.lost) == ("paused", "signal", 0)
    assert report.succeeded == run.done == sum(visited(ON).values()) < 80
    check_rest(operation, rows, "signalled")


def test_error_of_a_callable_pauses(rows, operation):
    def fail():
        raise RuntimeError("no more disk")

    with pytest.raises(RuntimeError):
        operation.map(rows, run="erring", on_outcome=once(fail))
    run = ledger(ON, "erring")[0]
    assert (run.status, run.stop_code, run.stop_reason) == ("paused", "error", "RuntimeError in the caller")
    check_rest(operation, rows, "erring")


def test_caller_elsewhere_is_taken_over_when_it_is_silent(rows, operation):
    def pretend():
        row.update(status="running", holder="other pid=1 boot=x namespace=1 started=1 session=9")
        row.update(heartbeat_at=timezone.now() - timedelta(seconds=50))

    operation.map(rows, run="elsewhere", on_outcome=once(lambda: control.pause("elsewhere", using=ON)))
    row = tables.Run.objects.using(ON).filter(name="elsewhere")
    pretend()
    with pytest.raises(RunBusy, match="other, process 1 works on the run 'elsewhere'"):
        operation.map(rows, run="elsewhere")
    assert operation.map(rows, run=Run("elsewhere", stale_after=40)).run.status == "finished"


def test_caller_seen_to_run_may_be_silent_for_longer(rows, operation):
    refused = []

    def try_too():
        time.sleep(0.4)
        with pytest.raises(RunBusy, match="silent for stale_after seconds, or for ten times as long"):
            operation.map(rows, run=Run("silent", stale_after=0.2))
        assert control.recover(stale_after=timedelta(seconds=0.2), using=ON) == []
        refused.append(True)
        assert operation.map(rows, run=Run("silent", stale_after=0.02)).run.status == "finished"

    with pytest.raises(LeaseLost):
        operation.map(rows, run="silent", on_outcome=once(try_too))
    assert refused
    assert visited(ON) == dict.fromkeys(range(1, 81), 1)


def caller_that_is_frozen(heard):
    report = None
    try:
        report = counts.using(databases=(ON,), transaction="chunk", chunksize=2, workers=2).map(
            Thing.objects.using(ON).all(), run="frozen", on_outcome=lambda outcome: heard.set() or time.sleep(0.01)
        )
    except LeaseLost as lost:
        report = lost.report
        os._exit(7 if report.succeeded + report.skipped == report.total and not report.lost else 8)
    os._exit(9)


def test_frozen_caller_that_was_taken_over_commits_nothing(rows):
    context = multiprocessing.get_context("fork")
    heard = context.Event()
    connections.close_all()
    process = context.Process(target=caller_that_is_frozen, args=(heard,))
    process.start()
    assert heard.wait(20)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(0.3)
    operation = counts.using(databases=(ON,), transaction="chunk", chunksize=2)
    report = operation.map(rows, run=Run("frozen", stale_after=0.2))
    assert report.run.status == "finished"
    assert visited(ON) == dict.fromkeys(range(1, 81), 1)
    os.kill(process.pid, signal.SIGCONT)
    process.join(30)
    assert process.exitcode == 7
    assert visited(ON) == dict.fromkeys(range(1, 81), 1)
    assert ledger(ON, "frozen")[1] == [("", "80", 80, 0, 0)]
    wait_until(lambda: not multiprocessing.active_children())


@pooled_operation(progress=False)
def counts_also(row):
    row.save()


@pytest.mark.parametrize(
    ("change", "entry"),
    [
        (lambda operation, rows: (operation.bind(bad=(3,)), rows), "constants"),
        (lambda operation, rows: (operation, rows.filter(group=0)), "rows"),
        (lambda operation, rows: (counts_also.using(databases=(ON,)), rows), "function"),
    ],
)
def test_other_input_or_parameters_are_refused(rows, operation, change, entry):
    operation.using(executor="serial").map(rows, run="same")
    changed, others = change(operation, rows)
    with pytest.raises(RunConflict, match=f"the run 'same' began with another {entry}: "):
        changed.map(others, run=Run("same", using=ON))
    assert sum(visited(ON).values()) == 80


class Uncounted(QuerySet):
    """Its rows cannot be counted, as with a time limit of the server."""

    def count(self):
        raise RuntimeError("no time to count")


def test_start_that_fails_leaves_no_run_behind(rows, operation):
    with pytest.raises(RuntimeError, match="no time to count"):
        operation.map(Uncounted(Thing, using=ON), run="begun")
    assert not tables.Run.objects.using(ON).exists()


@needs_mariadb
def test_mariadb_collation_that_merges_names_is_refused():
    tables.Run.objects.using("mariadb").create(name="Fill")
    operation = counts.using(databases=("mariadb",))
    with pytest.raises(RunConflict, match="the run 'Fill' began with another name: 'Fill', and now it is 'fill'"):
        operation.map(make_things("mariadb", 3), run="fill")
    assert sum(visited("mariadb").values()) == 0


def test_rows_that_workers_lock_go_on(rows, operation):
    locked = operation.using(transaction="chunk", chunksize=10, executor="serial", max_failures=1)
    rows.filter(pk=20).update(group=5)
    assert locked.map(rows.select_for_update(), run="locked").run.status == "paused"
    report = locked.using(max_failures=None).map(rows.select_for_update(), run="locked")
    assert report.run.done == sum(visited(ON).values()) == 79


def test_rows_that_came_later_are_counted(rows, operation):
    more = [Thing(pk=pk) for pk in range(100, 103)]
    add = once(lambda: Thing.objects.using(ON).bulk_create(more))
    report = operation.map(rows, run="grown", on_outcome=add)
    assert (report.succeeded, report.run.came_later, report.run.total) == (80, 3, 80)
    assert ledger(ON, "grown")[0].came_later == 3
    assert "3 rows came later" in str(report)
