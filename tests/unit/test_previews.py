"""How a preview shows its figures."""

import pytest

from poolsave.previews import _duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "less than 0.001 ms"), (0.0003, "0.3 ms"), (0.13, "130 ms"), (1.25, "1.2 s"), (75, "75 s"), (7200, "2 h")],
)
def test_time_has_a_unit_that_is_easy_to_read(seconds, text):
    assert _duration(seconds) == text
