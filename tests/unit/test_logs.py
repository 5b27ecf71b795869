"""What a run says of its progress where there is no terminal."""

import logging
from types import SimpleNamespace

import pytest

from poolsave._runs import progress as _progress
from tests.support import operations
from tests.support.operations import pure


@pytest.fixture(autouse=True)
def _all_levels(caplog):
    caplog.set_level(logging.INFO, "poolsave")


@pure
def fails_on_even(number):
    if number % 2 == 0:
        raise ValueError(number)


@pytest.fixture
def elsewhere(monkeypatch, capsys):
    """Time that passes quickly, and what is written to a stderr that is no terminal."""
    monkeypatch.setattr(_progress, "LOG_INTERVAL", 0)
    return lambda: capsys.readouterr().err


def test_progress_without_a_terminal_is_lines_of_the_log(caplog, elsewhere):
    fails_on_even.using(executor="serial", progress=True, chunksize=2, window=2).map(range(8), total=None)
    progress = [record for record in caplog.records if record.poolsave_event == "progress"]
    counts = [(record.poolsave_done, record.poolsave_failed) for record in progress]
    assert counts == sorted(counts)
    assert counts[-1] == (8, 4)
    assert progress[-1].getMessage().startswith("fails_on_even 8 of 8 objects done, 4 failed (")
    assert elsewhere() == ""


def test_lines_go_to_stderr_where_the_log_leaves_them_out(caplog, elsewhere):
    caplog.set_level(logging.WARNING, "poolsave")
    operations.doubles.using(executor="serial", progress=True, chunksize=4).map(iter("abcd"), total=5)
    written = elsewhere()
    assert written.splitlines()[-1].startswith("doubles: 4 of 5 objects done, 0 failed (")
    assert "\r" not in written


def test_there_are_thirty_seconds_between_two_lines(caplog, monkeypatch):
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=0)
    monkeypatch.setattr(_progress, "time", clock)
    progress = _progress.LogProgress(None, "slow")
    for clock.now in range(10, 100, 10):
        progress.advance(1, 0)
    assert [record.poolsave_done for record in caplog.records] == [3, 6, 9]
