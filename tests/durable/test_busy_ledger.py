"""A database that is too busy for the ledger delays a run, and whatever ends a session, the run goes on at once."""

import time

import pytest
from django.db import Error, OperationalError, connections

from poolsave import Run, pooled_operation
from tests.support.durable import counts, entries, ledger, make_things, visited

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")
ON = "postgres"


@pytest.fixture
def locked(monkeypatch):
    """Has locks awaited for a tenth of a second, and gives another connection, which can hold some."""
    options = connections[ON].settings_dict["OPTIONS"]
    monkeypatch.setitem(options, "options", "-c lock_timeout=100ms")
    connections[ON].close()
    other = connections[ON].copy()
    yield other
    other.close()
    connections[ON].close()


def hold(other):
    """Lock the rows of all runs, as an open request that has changed one does."""
    other.set_autocommit(False)
    with other.cursor() as cursor:
        cursor.execute("UPDATE poolsave_ledger_run SET started_by = 'someone'")


def at_fifth(call, afterwards=lambda: None):
    """Give a callable for `on_outcome` that makes the rest take two seconds, or there would be no heartbeat."""
    seen = []

    def slowly(outcome):
        seen.append(outcome)
        if len(seen) == 5:
            call()
        elif len(seen) > 5:
            time.sleep(0.03)
            afterwards()

    return slowly


def check_all_once(alias, name):
    assert visited(alias) == dict.fromkeys(range(1, 81), 1)
    assert entries(alias) == [*range(1, 81)]
    run, ranges, _failures = ledger(alias, name)
    assert (run.status, ranges) == ("finished", [("", "80", 80, 0, 0)])


def test_locked_row_of_the_run_only_delays_it(locked):
    began = time.monotonic()

    def release():
        if time.monotonic() - began > 2 and locked.connection is not None:
            locked.close()

    operation = counts.using(databases=(ON,), chunksize=1, window=4)
    operation.map(make_things(ON, 80), run="delayed", on_outcome=at_fifth(lambda: hold(locked), release))
    assert locked.connection is None
    check_all_once(ON, "delayed")


def test_run_left_by_a_broken_session_goes_on_at_once(locked):
    rows, operation = make_things(ON, 80), counts.using(databases=(ON,), chunksize=1, window=4)
    with pytest.raises(OperationalError, match="lock timeout"):
        operation.map(rows, run=Run("left", stale_after=0.5), on_outcome=at_fifth(lambda: hold(locked)))
    locked.close()
    assert ledger(ON, "left")[0].status == "running"  # even that could not be written
    operation.map(rows, run="left")
    check_all_once(ON, "left")


@pooled_operation(progress=False, workers=1, start_method="fork", chunksize=1)
def holds_the_lock(row):
    """SQLite has one writer at a time: until this object has ended nobody else can write."""
    row.visits += 1
    row.save()
    time.sleep(0.4)


def test_objects_that_keep_others_from_writing_are_waited_for(monkeypatch):
    monkeypatch.setitem(connections["default"].settings_dict["OPTIONS"], "timeout", 0.05)
    connections["default"].close()
    report = holds_the_lock.map(make_things("default", 4), run="one-writer")
    connections["default"].close()
    assert (report.succeeded, report.run.status) == (4, "finished")
    assert ledger("default", "one-writer")[1] == [("", "4", 4, 0, 0)]


def test_error_of_the_ledger_pauses_the_run():
    def refuse(cursor=connections["default"].cursor):
        with cursor() as each:
            each.execute(
                "CREATE TRIGGER refuses BEFORE UPDATE ON poolsave_ledger_run WHEN NEW.status = 'running' "
                "BEGIN SELECT RAISE(ABORT, 'no room for a heartbeat'); END"
            )

    rows, operation = make_things("default", 80), counts.using(chunksize=1, window=4)
    try:
        with pytest.raises(Error, match="no room for a heartbeat") as raised:
            operation.map(rows, run="refused", on_outcome=at_fifth(refuse))
    finally:
        with connections["default"].cursor() as cursor:
            cursor.execute("DROP TRIGGER IF EXISTS refuses")
    run = ledger("default", "refused")[0]
    assert (run.status, run.stop_code, raised.value.report.run.status) == ("paused", "error", "paused")
    assert "no room for a heartbeat" in run.stop_reason
    operation.map(rows, run="refused")
    check_all_once("default", "refused")
