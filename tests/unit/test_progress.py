"""Which progress is opened."""

from poolsave._runs import progress as _progress


def test_progress_that_is_not_wanted_is_silence():
    assert isinstance(_progress.open_progress(False, lambda: None, ""), _progress.NullProgress)
