"""What `executor="auto"` has tried, for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A stretch of a run with `executor="auto"` that was worked off by one executor."""

    executor: str
    """ "serial", "process", or "thread"."""
    objects: int
    """How many objects ended in it."""
    seconds: float
    """How long it took, without the time that whoever reads a stream took."""
    verdict: str
    """Why it was kept to the end of the run, or given up for the next one."""

    @property
    def rate(self) -> float:
        """Objects per second."""
        return self.objects / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        return f"{self.executor} ({self.objects} objects, {self.rate:.0f} per second)"


def trial_lines(trials: Sequence[Trial]) -> list[str]:
    """What `str(report)` says of them, if there are any."""
    return [f"  auto: {', then '.join(map(str, trials))}: {trials[-1].verdict}"] if trials else []


def trial_summary(trials: Sequence[Trial]) -> dict[str, Any]:
    """What a file says of them, if there are any."""
    if not trials:
        return {}
    return {"chosen": trials[-1].executor, "tried": [{**asdict(one), "rate": one.rate} for one in trials]}
