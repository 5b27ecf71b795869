"""A report never lies about the database, not even when the server crashes in the middle and recovers from its log."""

import os
import random
import signal
from collections import Counter

import pytest
from django.db import DatabaseError
from django.db.utils import load_backend

from poolsave._sqlstates import contact_lost, is_transient
from tests.chaos import End, audit, lines_of, names_signed
from tests.crashing import Run
from tests.postgres import settings_from_url

CONTACT = {"DatabaseError", "InterfaceError", "OperationalError"}
WAYS = [("object", False), ("object", True), ("chunk", None)]


def crash_and_audit(server, folder, mode, *, resolve_lost, crashes, retries):
    """Crash the server so many times, and kill a worker at every other crash; gives the counts by status."""
    options = {"transaction": mode, "resolve_lost": resolve_lost, "retries": retries, "workers": 3, "chunksize": 6}
    with Run(server, folder, **options) as run:
        for number in range(crashes):
            lines = len(lines_of(run.signed)) + random.randrange(30, 150)
            run.wait_for(lambda: len(lines_of(run.signed)) >= lines)  # noqa: B023  it is waited for here
            server.crash()
            if number % 2:
                os.kill(random.choice(run.workers()).pid, signal.SIGKILL)
            server.start()
        outcomes, found = run.end()
    counts = audit([End(*outcome[:2]) for outcome in outcomes], found, signed=names_signed(run.signed))
    told = Counter(kind for _name, status, kind, _text in outcomes if status in ("failed", "lost"))
    assert told.keys() <= CONTACT | {"WorkerDied"}
    print(f"{mode} resolve_lost={resolve_lost} retries={retries}: {crashes} crashes", dict(counts), dict(told))
    return counts


@pytest.mark.parametrize(("mode", "resolve_lost"), WAYS)
@pytest.mark.parametrize("retries", [0, 10])
def test_every_outcome_is_true_after_crashes_and_recovery(server, tmp_path, mode, resolve_lost, retries):
    crashes = 2
    counts = crash_and_audit(server, tmp_path, mode, resolve_lost=resolve_lost, crashes=crashes, retries=retries)
    assert counts["succeeded"] >= 50
    if resolve_lost is False:
        assert counts["lost"] <= crashes * 3  # one for each worker that was in its COMMIT
    else:
        assert counts["lost"] == 0
    if retries:  # in which time the server is up again, so that only what a killed worker was at can fail
        assert counts["failed"] <= crashes * 3 * 6


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("mode", "resolve_lost"), WAYS)
def test_many_crashes(server, tmp_path, mode, resolve_lost):
    counts = crash_and_audit(server, tmp_path, mode, resolve_lost=resolve_lost, crashes=30, retries=6)
    assert counts["lost"] <= (30 * 3 if resolve_lost is False else 0)


@pytest.mark.django_db(databases=["default"])
def test_a_server_that_crashes_between_two_statements_is_a_lost_contact(server):
    """The drivers raise a bare DatabaseError then, without a SQLSTATE."""
    settings = {**settings_from_url(server.url), "ATOMIC_REQUESTS": False, "AUTOCOMMIT": True, "TIME_ZONE": None}
    connection = load_backend(settings["ENGINE"]).DatabaseWrapper(
        {**settings, "OPTIONS": {}, "CONN_MAX_AGE": 0, "CONN_HEALTH_CHECKS": False}, "default"
    )
    try:
        with connection.cursor() as cursor:
            server.crash()
            with pytest.raises(DatabaseError) as caught:
                cursor.execute("SELECT 1")
    finally:
        server.start()
        connection.close()
    assert contact_lost(caught.value)
    assert is_transient(caught.value)
