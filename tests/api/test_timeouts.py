"""`timeout`: an exception first, so that the transaction is rolled back; then TERM, then KILL for the whole tree."""

import contextlib
import os
import socket
import time
from pathlib import Path

import psutil
import pytest
from django.db import connections, transaction

from poolsave import Status, TimedOut, WorkerDied, concurrent_saves, pooled_operation
from tests.conftest import wait_until
from tests.models import Badge, Person, Tag
from tests.support import operations

NAMES = ["a", "slow", "c", "d"]


@pytest.mark.django_db(transaction=True, databases="__all__")
@pytest.mark.parametrize("mode", ["object", "chunk"])
def test_an_object_that_takes_too_long_is_rolled_back(alias, start_method, mode):
    operation = operations.sleeps_when_told.using(timeout=0.3, transaction=mode, chunksize=4, databases=(alias,))
    report = operation.using(start_method=start_method).bind(alias=alias).map(NAMES)
    (late,) = report.failures
    assert (late.item, late.status, type(late.error)) == ("slow", Status.FAILED, TimedOut)
    assert late.error.seconds == 0.3
    assert isinstance(late.error, TimeoutError)
    assert Person.objects.using(alias).count() == Badge.objects.using(alias).count() == 3


def test_object_that_ignores_its_timeout_is_killed_with_children():
    """The children are the processes that it has started."""
    report = operations.ignores_time_outs.using(timeout=0.2, start_method="fork", chunksize=4).map(NAMES)
    (late,) = report.failures
    assert (late.item, type(late.error), type(late.error.__cause__)) == ("slow", TimedOut, WorkerDied)
    assert report.succeeded == 3
    child = int(Path(os.environ["POOLSAVE_TEST_FOLDER"], "child").read_text())
    wait_until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


def test_the_clock_starts_with_the_object_and_not_with_the_chunk():
    report = operations.naps.using(timeout=0.5, start_method="fork", chunksize=20, workers=1).map([0.1] * 20)
    assert report.ok


def test_timeout_works_in_a_block():
    with concurrent_saves(timeout=0.2, transaction=None, start_method="fork", on_failure="collect") as saves:
        assert isinstance(saves.submit(operations.naps, 30).exception(30), TimedOut)
        assert saves.submit(operations.naps, 0).result(30) == 0


def test_crash_names_the_place_where_it_happened():
    report = operations.crashes.using(start_method="fork", chunksize=2).map(["a", "bad", "c"])
    (crashed,) = report.failures
    assert crashed.error.signal == "SIGSEGV"
    assert "crashes" in crashed.error.details
    assert "Segmentation fault" in str(crashed.error)


LIMITED = {"start_method": "fork", "workers": 1, "chunksize": 2, "progress": False, "timeout": 0.2}
LONG = 60
"""Seconds, in which no test would pass."""
modes = pytest.mark.parametrize("mode", ["object", "chunk"])
with_databases = pytest.mark.django_db(transaction=True, databases="__all__")


def save_on_postgres(name):
    Person(name=name).save(using="postgres")


@pytest.fixture
def _commit_waits(transactional_db):
    """To commit a person called slow waits for a lock that the test holds."""
    with connections["postgres"].cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION waits() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$;"
            "CREATE CONSTRAINT TRIGGER waits AFTER INSERT ON tests_person DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW WHEN (NEW.name = 'slow') EXECUTE FUNCTION waits()"
        )
        cursor.execute("SELECT pg_advisory_lock(1)")
        yield
        cursor.execute("SELECT pg_advisory_unlock(1)")
        cursor.execute("DROP FUNCTION waits CASCADE")


@with_databases
@pytest.mark.usefixtures("_commit_waits")
@modes
def test_a_commit_that_takes_too_long_is_ended_and_lost(mode):
    """The server may commit it or not."""
    operation = pooled_operation(save_on_postgres, databases=("postgres",), resolve_lost=False, **LIMITED)
    report = operation.using(transaction=mode).map(["a", "slow"])
    lost = {outcome.item for outcome in report.failures}
    assert lost == ({"slow"} if mode == "object" else {"a", "slow"})
    assert {(outcome.status, type(outcome.error)) for outcome in report.failures} == {(Status.LOST, TimedOut)}


@with_databases
@modes
def test_callback_over_its_timeout_leaves_its_object_saved(mode):
    def save(name):
        Person(name=name).save()
        if name == "slow":
            transaction.on_commit(lambda: time.sleep(LONG))
        transaction.on_commit(lambda: Tag(name=name).save())

    report = pooled_operation(save, transaction=mode, **LIMITED).map(["a", "slow", "b"])
    assert report.succeeded == Person.objects.count() == Tag.objects.count() == 3
    assert [(flawed.item, type(flawed.error)) for flawed in report.flawed] == [("slow", TimedOut)]


@with_databases
@modes
def test_callback_that_ignores_its_timeout_ends_its_worker(mode):
    """The clock runs until the last callback. The object is saved by then, and stays saved."""

    def goes_on():
        ends = time.monotonic() + LONG
        while time.monotonic() < ends:
            with contextlib.suppress(TimedOut):
                time.sleep(LONG)

    def save(name):
        Person(name=name).save()
        if name == "slow":
            transaction.on_commit(goes_on)

    report = pooled_operation(save, transaction=mode, **LIMITED).map(["a", "slow", "b"])
    assert report.succeeded == Person.objects.count() == 3
    assert "slow" in {flawed.item for flawed in report.flawed}


@with_databases
@modes
def test_timeout_ends_the_wait_for_a_server_without_an_answer(monkeypatch, mode):
    connections["postgres"].ensure_connection()  # or the caller would look whether there is one to be had
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        monkeypatch.setitem(connections["postgres"].settings_dict, "HOST", host)
        monkeypatch.setitem(connections["postgres"].settings_dict, "PORT", port)
        operation = pooled_operation(save_on_postgres, databases=("postgres",), **LIMITED)
        report = operation.using(transaction=mode).map(["a", "b"])
    assert {(outcome.status, type(outcome.error)) for outcome in report.failures} == {(Status.FAILED, TimedOut)}
    assert report.failed == 2


@with_databases
def test_further_tries_are_made_only_while_there_is_time():
    def save(name):
        operations.deadlock("postgres")

    operation = pooled_operation(save, databases=("postgres",), retries=10_000, **LIMITED)
    (failure,) = operation.map(["a"]).failures
    assert failure.status is Status.FAILED
    assert failure.attempts < 100
