"""`timeout`: an exception first, so that the transaction is rolled back; then TERM, then KILL for the whole tree."""

import os
from pathlib import Path

import psutil
import pytest

from poolsave import Status, TimedOut, WorkerDied, concurrent_saves
from tests.conftest import wait_until
from tests.models import Badge, Person
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


def test_one_that_does_not_listen_is_killed_with_what_it_has_started():
    report = operations.ignores_time_outs.using(timeout=0.2, start_method="fork", chunksize=4).map(NAMES)
    (late,) = report.failures
    assert (late.item, type(late.error), type(late.error.__cause__)) == ("slow", TimedOut, WorkerDied)
    assert report.succeeded == 3
    child = int(Path(os.environ["POOLSAVE_TEST_FOLDER"], "child").read_text())
    wait_until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


def test_the_clock_starts_with_the_object_and_not_with_the_chunk():
    report = operations.naps.using(timeout=0.5, start_method="fork", chunksize=20, workers=1).map([0.1] * 20)
    assert report.ok


def test_it_works_in_the_block():
    with concurrent_saves(timeout=0.2, transaction=None, start_method="fork", on_failure="collect") as saves:
        assert isinstance(saves.submit(operations.naps, 30).exception(30), TimedOut)
        assert saves.submit(operations.naps, 0).result(30) == 0


def test_a_crash_is_told_with_the_place_where_it_happened():
    report = operations.crashes.using(start_method="fork", chunksize=2).map(["a", "bad", "c"])
    (crashed,) = report.failures
    assert crashed.error.signal == "SIGSEGV"
    assert "crashes" in crashed.error.details
    assert "Segmentation fault" in str(crashed.error)
