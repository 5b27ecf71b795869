"""Lines for the logger `poolsave`: a run's start, each new cause of failures once, its end. For cron, where no bar is.

Every record has the fields of `extra` that docs/outcomes.md lists.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from .._reports.causes import format_cause, printable
from ..options import Options, worker_range
from ..reports import Report

logger = logging.getLogger("poolsave")
logger.addHandler(logging.NullHandler())  # without a configuration a library writes nothing
INTERVAL = 30.0
"""Seconds between two lines of a run whose progress is shown where there is no terminal."""

MIN_SECONDS = 1e-6
"""Seconds that a run takes at least: its rate is a number."""


class RunLog:
    """Logs one run. Call `start`, then `add_causes` after failures, then `close`."""

    def __init__(self, name: str, report: Report[Any]) -> None:
        self._name = name
        self._report = report
        self._throttled_at = -INTERVAL

    def start(self, options: Options) -> None:
        """Log that workers have been started."""
        executor = options.executor if isinstance(options.executor, str) else type(options.executor).__name__
        most = worker_range(options.workers).most
        extra = {"executor": executor, "workers": most}
        self._log(logging.INFO, "started", f"started (executor {executor}, up to {most} workers)", extra)

    @property
    def has_new_causes(self) -> bool:
        """Whether there are failures for a cause that has not been logged."""
        return bool(self._report._causes.unseen)

    def add_causes(self) -> None:
        """Log each cause that is new, with its first failure."""
        causes = self._report._causes
        while causes.unseen:
            cause = causes.unseen.pop(0)
            first = causes.first(cause)
            line = next(format_cause(cause, 1, first, of_rows=False)).strip().removeprefix("1 x ")
            extra = {"cause": cause[0], "sqlstate": cause[1], "index": first.index}
            self._log(logging.WARNING, "cause", printable(line), extra)

    def wants_throttle(self, reason: str) -> bool:
        """Whether a line is due about throttles: at most one every `INTERVAL` seconds."""
        return bool(reason) and time.monotonic() - self._throttled_at >= INTERVAL

    def add_throttle(self, reason: str, share: float) -> None:
        """Log why the run is slower than it could be, or waits."""
        self._throttled_at = time.monotonic()
        text = f"slowed down to {share:.0%}: {reason}" if share else f"held: {reason}"
        self._log(logging.WARNING, "throttled", printable(text), {"share": share, "reason": reason})

    def close(self) -> None:
        """Log the end with all counts, if the run has ended in this process."""
        if self._report.finished:
            self.add_causes()
            failed = self._report.failed + self._report.lost
            stopped = f"; stopped: {self._report.stopped}" if self._report.stopped else ""
            text = f"ended: {self._report._counts_text()} in {self._report.elapsed:.2f} s{stopped}"
            extra = {"elapsed": self._report.elapsed, "rate": self._report.rate, "stopped": self._report.stopped}
            self._log(logging.WARNING if failed else logging.INFO, "ended", text, extra)

    def _log(self, level: int, event: str, text: str, extra: dict[str, Any]) -> None:
        if logger.isEnabledFor(level):
            counts = {str(status): count for status, count in self._report._counts.items()}
            write(level, self._name, event, text, {**extra, **counts, "total": self._report.total})


class LogProgress:
    """Progress where there is no terminal: lines in the log, or on stderr where the log leaves them out."""

    def __init__(self, total: int | None, name: str) -> None:
        self._total = total
        self._name = name
        self._done = self._failed = 0
        self._started_at = self._written_at = time.monotonic()

    def advance(self, done: int, failed: int) -> None:
        self._done += done
        self._failed += failed
        if time.monotonic() - self._written_at >= INTERVAL:
            self._write()

    def _write(self) -> None:
        self._written_at = time.monotonic()
        rate = self._done / max(self._written_at - self._started_at, MIN_SECONDS)
        of_total = "" if self._total is None else f" of {self._total}"
        text = f"{self._done}{of_total} objects done, {self._failed} failed ({rate:.0f} per second)"
        if logger.isEnabledFor(logging.INFO):
            extra = {"done": self._done, "expected": self._total, "failed": self._failed, "rate": rate}
            write(logging.INFO, self._name, "progress", text, extra)
        elif sys.stderr is not None:
            sys.stderr.write(f"{self._name}: {text}\n")
            sys.stderr.flush()

    def throttled(self, reason: str) -> None:
        """Do nothing: the log has lines of its own for it."""

    def clear(self) -> None:
        """Do nothing: each line stays."""

    def close(self) -> None:
        """Write the last line, unless the log has one of the end."""
        if not logger.isEnabledFor(logging.INFO):
            self._write()


def write(level: int, name: str, event: str, text: str, extra: dict[str, Any]) -> None:
    """Log one line. The fields have a prefix, since a record has an attribute `name`, and others have theirs."""
    fields = {"operation": name, "event": event, **extra}
    logger.log(level, "%s %s", name, text, extra={f"poolsave_{key}": value for key, value in fields.items()})
