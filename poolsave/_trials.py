"""What `executor="auto"` has tried, for the report."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Trial"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A stretch of a run with `executor="auto"` that was worked off by one executor."""

    executor: str
    """ "serial" or "process"."""
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
