"""How long throttles held a run back, and how a report shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttled:
    """How one throttle held a run back."""

    throttle: str
    """The throttle, as it is written, or the name of the callable."""
    seconds: float
    """Seconds in which it was the one that left the fewest workers to the run; of a pace, those in which it waited."""
    held: float
    """Seconds of these in which nothing new could start."""
    reason: str
    """What it said when it left the fewest."""

    def __str__(self) -> str:
        held = f", {self.held:.1f} s of these without anything new" if self.held else ""
        return f"{self.seconds:.1f} s by {self.throttle}{held}: {self.reason}"


def throttled_lines(throttled: Sequence[Throttled]) -> list[str]:
    """Give the lines of `str(report)`."""
    return [f"  throttled: {entry}" for entry in throttled]


def throttled_summary(throttled: Sequence[Throttled]) -> dict[str, Any]:
    """Give the entries of a report's file, if there are any."""
    return {"throttled": [asdict(entry) for entry in throttled]} if throttled else {}
