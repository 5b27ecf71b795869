"""A report never lies about the database, not even when the server crashes in the middle and recovers from its log."""

import os
import random
import signal
from collections import Counter

import pytest

from tests.support.chaos import End, audit, lines_of, names_signed
from tests.support.crashing import Run

CONTACT = {"DatabaseError", "InterfaceError", "OperationalError"}
WORKERS = 3
CHUNK = 6
UNTIL_IT_IS_UP = 10_000
"""Retries; a pause between two is a second at most."""
WAYS = [("object", False), ("object", True), ("chunk", None)]


def crash_and_audit(private_server, folder, mode, *, resolve_lost, crashes, retries):
    """Crash the server so many times, and kill a worker at every other crash; gives the counts by status."""
    options = {
        "transaction": mode,
        "resolve_lost": resolve_lost,
        "retries": retries,
        "workers": WORKERS,
        "chunksize": CHUNK,
    }
    with Run(private_server, folder, **options) as run:
        for number in range(crashes):
            lines = len(lines_of(run.signed)) + random.randrange(30, 150)
            run.wait_for(lambda: len(lines_of(run.signed)) >= lines)  # noqa: B023  it is waited for here
            private_server.crash()
            if number % 2:
                os.kill(random.choice(run.workers()).pid, signal.SIGKILL)
            private_server.start()
        outcomes, found = run.end()
    counts = audit([End(*outcome[:2]) for outcome in outcomes], found, signed=names_signed(run.signed))
    told = Counter(kind for _name, status, kind, _text in outcomes if status in ("failed", "lost"))
    assert told.keys() <= CONTACT | {"WorkerDied"}
    print(f"{mode} resolve_lost={resolve_lost} retries={retries}: {crashes} crashes", dict(counts), dict(told))
    return counts


@pytest.mark.parametrize(
    ("mode", "resolve_lost", "retries"), [*((*way, UNTIL_IT_IS_UP) for way in WAYS), ("object", True, 0)]
)
def test_every_outcome_is_true_after_crashes_and_recovery(private_server, tmp_path, mode, resolve_lost, retries):
    crashes = 2
    counts = crash_and_audit(
        private_server, tmp_path, mode, resolve_lost=resolve_lost, crashes=crashes, retries=retries
    )
    assert counts["succeeded"] >= 50
    in_commit = crashes * WORKERS * (CHUNK if mode == "chunk" else 1)
    assert counts["lost"] <= (in_commit if resolve_lost is False else 0)
    if retries == UNTIL_IT_IS_UP:  # then only what was in its COMMIT, and what a killed worker was at, is not saved
        assert counts["failed"] <= in_commit + crashes // 2


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("mode", "resolve_lost"), WAYS)
def test_many_crashes(private_server, tmp_path, mode, resolve_lost):
    counts = crash_and_audit(private_server, tmp_path, mode, resolve_lost=resolve_lost, crashes=30, retries=6)
    assert counts["lost"] <= (30 * WORKERS if resolve_lost is False else 0)
