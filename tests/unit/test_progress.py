"""Which progress is opened, and how often a bar is drawn."""

import io
import sys

import pytest

from poolsave._runs import progress as _progress


@pytest.mark.parametrize(("terminal", "seconds"), [(True, 0.1), (False, 10)])
def test_a_bar_in_a_log_is_drawn_anew_every_ten_seconds_only(monkeypatch, terminal, seconds):
    """Every state of it stays there; on a terminal each one is written over the one before."""
    stderr = io.StringIO()
    stderr.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stderr)
    bar = _progress.open_progress(True, lambda: 5, "")
    bar.close()
    assert bar._bar.mininterval == seconds


def test_progress_that_is_not_wanted_is_silence():
    assert isinstance(_progress.open_progress(False, lambda: None, ""), _progress.NullProgress)
