"""What `executor="auto"` has tried, and how a report shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A part of a run with `executor="auto"` in which one executor ran the objects."""

    executor: str
    """ "serial", "process", or "thread"."""
    objects: int
    """How many objects ended in it."""
    seconds: float
    """Seconds that it took, without the time that the reader of a stream took."""
    verdict: str
    """Why the executor was kept to the end of the run, or given up for the next one."""

    @property
    def rate(self) -> float:
        """Objects per second."""
        return self.objects / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        return f"{self.executor} ({self.objects} objects, {self.rate:.0f} per second)"


def trial_lines(trials: Sequence[Trial]) -> list[str]:
    """Give the line of `str(report)`, if there are trials."""
    return [f"  auto: {', then '.join(map(str, trials))}: {trials[-1].verdict}"] if trials else []


def trial_summary(trials: Sequence[Trial]) -> dict[str, Any]:
    """Give the entries of a report's file, if there are trials."""
    if not trials:
        return {}
    return {"chosen": trials[-1].executor, "tried": [{**asdict(trial), "rate": trial.rate} for trial in trials]}
