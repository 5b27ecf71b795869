"""What a report says of a durable run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class DurableRun:
    """A durable run as its caller knows it. It changes while the run goes on."""

    name: str
    status: str = "due"
    """As `poolsave.ledger.models.Run.Status` has it: "running", "paused", "finished", "finished with failures", ..."""
    stop_code: str = ""
    """Why it is paused: "operator", "signal", "failures", "throttle", "slice" or "error"."""
    stop_reason: str = ""
    done: int = 0
    """Objects that succeeded when they were first tried, in all sessions."""
    failed: int = 0
    """Objects that failed when they were first tried, in all sessions, also those that a retry has mended since."""
    unresolved: int | None = None
    """Failures that are left: neither mended by a retry nor given up. None while the run goes on."""
    skipped: int = 0
    """Rows that were gone when their turn came."""
    total: int | None = None
    """How many objects it had as it began, which can be an estimate."""
    came_later: int | None = None
    """Rows above the last key, counted as the run ended: run again under another name, or leave them."""
    exactly_once: bool = True
    """False: an object may have run twice, since no row of the ledger is in the transaction of its work."""
    resumed: bool = False
    """Whether an earlier session has done a part of it."""

    def __str__(self) -> str:
        left = f" ({self.unresolved} unresolved)" if self.unresolved or (self.failed and self.unresolved == 0) else ""
        counts = f"{self.done} done, {self.failed} failed{left}, {self.skipped} skipped"
        of = "" if self.total is None else f" of {self.total}"
        parts = [f"run {self.name!r}: {self.status}, {counts}{of}"]
        if self.stop_code:
            parts.append(f"stopped by {self.stop_code!r}" + (f" ({self.stop_reason})" if self.stop_reason else ""))
        if self.came_later:
            parts.append(f"{self.came_later} rows came later")
        if not self.exactly_once:
            parts.append("at least once, not exactly once")
        return "; ".join(parts)
