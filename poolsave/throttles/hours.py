"""`Hours`: a part of the day."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from django.utils import timezone

from ..errors import InvalidOption

TIMES = re.compile(r"\s*(\d{1,2}):(\d\d)\s*-\s*(\d{1,2}):(\d\d)\s*")
DAY = 24 * 60
"""Minutes."""


@dataclass(frozen=True, slots=True, repr=False)
class Hours:
    """Work only in these hours, by the clock of `settings.TIME_ZONE`: `Hours("22:00-06:00")`, also over midnight.

    The minute of the end is no longer among them; "24:00" is the end of the day.

    Raises:
        InvalidOption: if that is not two different times of the day.
    """

    times: str

    def __post_init__(self) -> None:
        _minutes_of(self.times)

    def __call__(self) -> tuple[float, str] | None:
        """Give 0.0 and the reason outside of these hours, else None."""
        begin, end = _minutes_of(self.times)
        now = datetime.now(timezone.get_default_timezone())
        minute = now.hour * 60 + now.minute
        inside = begin <= minute < end if begin < end else minute >= begin or minute < end
        return None if inside else (0.0, f"it is {now:%H:%M}, outside of {self.times}")

    def __repr__(self) -> str:
        return f"Hours({self.times!r})"


def _minutes_of(times: object) -> tuple[int, int]:
    match = TIMES.fullmatch(times) if isinstance(times, str) else None
    if match is not None:
        hour, minute, end_hour, end_minute = map(int, match.groups())
        begin, end = hour * 60 + minute, end_hour * 60 + end_minute
        if minute < 60 and end_minute < 60 and begin < DAY and end <= DAY and begin != end % DAY:
            return begin, end
        if (begin, end) == (0, DAY) and end_minute < 60:
            return begin, end
    raise InvalidOption("times", times, 'give the first and the last time of two different ones, as in "22:00-06:00"')
