"""What is shown of a run while it goes on: a bar, a callable's calls, and lines for the logger `poolsave`.

    Run, BlockDriver -> RunDisplay -> Progress: BarProgress | CallbackProgress | LogProgress | NullProgress
                                   -> RunLog: a run's start, each new cause of failures once, its end; for cron

Nothing else imports tqdm. Every record of the log has the fields of `extra` that docs/outcomes.md lists.
"""

from __future__ import annotations

import inspect
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, Protocol

from .._engine.throttling import ThrottleMeter
from .._reports.batches import OutcomeBatch
from .._reports.causes import format_cause, printable
from ..options import Options, worker_range
from ..outcomes import Status
from ..reports import Report

logger = logging.getLogger("poolsave")
logger.addHandler(logging.NullHandler())  # without a configuration a library writes nothing
BAR_INTERVAL = 0.1
"""Seconds between two updates of a bar: short enough to look smooth, long enough to cost nothing."""
LOG_INTERVAL = 30.0
"""Seconds between two lines of a run whose progress is shown where there is no terminal."""
MIN_NAME = 10
"""Characters that the name and the number of failures have in a bar, however narrow the terminal is."""
MIN_SECONDS = 1e-6
"""Seconds that a run takes at least: its rate is a number."""


class Progress(Protocol):
    """Receives counts of objects, never of chunks."""

    def advance(self, done: int, failed: int) -> None:
        """Add `done` objects that have ended, of which `failed` have failed or were lost."""

    def throttled(self, reason: str) -> None:
        """Show why the run is slower than it could be; with an empty text, no longer."""

    def clear(self) -> None:
        """Take away what is drawn: something else is about to be written to the same terminal."""

    def close(self) -> None:
        """End: nothing more comes."""


class NullProgress:
    """Shows nothing."""

    def advance(self, done: int, failed: int) -> None:
        """Do nothing."""

    def throttled(self, reason: str) -> None:
        """Do nothing."""

    def clear(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class CallbackProgress(NullProgress):
    """Calls a callable with `(done, total)`, and with `failed` if it takes that, after every chunk."""

    def __init__(self, callback: Callable[..., object], total: int | None) -> None:
        self._callback = callback
        self._takes_failed = _takes_failed(callback)
        self._total = total
        self._done = 0
        self._failed = 0

    def advance(self, done: int, failed: int) -> None:
        self._done += done
        self._failed += failed
        if self._takes_failed:
            self._callback(self._done, self._total, failed=self._failed)
        else:
            self._callback(self._done, self._total)


def _takes_failed(callback: Callable[..., object]) -> bool:
    try:
        inspect.signature(callback).bind(0, None, failed=0)
    except (TypeError, ValueError):  # it takes no such argument, or does not say
        return False
    return True


class BarProgress:
    """A tqdm-like bar that counts objects and shows failures."""

    def __init__(self, make: Callable[..., Any], total: int | None, description: str) -> None:
        self._bar = make(total=total, desc=description, unit="obj")
        self._pending = 0
        self._failed = 0
        self._throttled = ""
        self._updated_at = 0.0

    def advance(self, done: int, failed: int) -> None:
        self._pending += done
        self._failed += failed
        if failed or time.monotonic() - self._updated_at >= BAR_INTERVAL:
            self._show(failed)

    def _show(self, failed: int) -> None:
        if failed:
            self._set_postfix(refresh=False)
        self._bar.update(self._pending)
        self._pending = 0
        self._updated_at = time.monotonic()

    def throttled(self, reason: str) -> None:
        if reason != self._throttled:
            self._throttled = reason
            self._set_postfix(refresh=True)

    def _set_postfix(self, *, refresh: bool) -> None:
        shown = {"failed": self._failed, "throttled": self._throttled}
        if hasattr(self._bar, "set_postfix"):
            self._bar.set_postfix(refresh=refresh, **{name: value for name, value in shown.items() if value})

    def clear(self) -> None:
        if hasattr(self._bar, "clear"):
            self._bar.clear()

    def close(self) -> None:
        self._bar.update(self._pending)
        self._bar.close()


class LastingProgress:
    """Passes on to what shows progress on stderr, until that fails: a terminal that was closed ends no run."""

    def __init__(self, make: Callable[[], Progress]) -> None:
        self._shown: Progress = NullProgress()
        with self._ended_by_errors():
            self._shown = make()

    @contextmanager
    def _ended_by_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):  # ValueError: sys.stderr was closed
            self._shown = NullProgress()

    def advance(self, done: int, failed: int) -> None:
        """Show so many more objects."""
        with self._ended_by_errors():
            self._shown.advance(done, failed)

    def throttled(self, reason: str) -> None:
        """Show why the run is held back."""
        with self._ended_by_errors():
            self._shown.throttled(reason)

    def clear(self) -> None:
        """Make room for a line of the log."""
        with self._ended_by_errors():
            self._shown.clear()

    def close(self) -> None:
        """Show the end."""
        with self._ended_by_errors():
            self._shown.close()


class LogProgress(NullProgress):
    """Progress where there is no terminal: lines in the log, or on stderr where the log leaves them out."""

    def __init__(self, total: int | None, name: str) -> None:
        self._total = total
        self._name = name
        self._done = self._failed = 0
        self._started_at = self._written_at = time.monotonic()

    def advance(self, done: int, failed: int) -> None:
        self._done += done
        self._failed += failed
        if time.monotonic() - self._written_at >= LOG_INTERVAL:
            self._add_line()

    def _add_line(self) -> None:
        self._written_at = time.monotonic()
        rate = self._done / max(self._written_at - self._started_at, MIN_SECONDS)
        of_total = "" if self._total is None else f" of {self._total}"
        text = f"{self._done}{of_total} objects done, {self._failed} failed ({rate:.0f} per second)"
        if logger.isEnabledFor(logging.INFO):
            extra = {"done": self._done, "expected": self._total, "failed": self._failed, "rate": rate}
            _write(logging.INFO, self._name, "progress", text, extra)
        elif sys.stderr is not None:
            sys.stderr.write(f"{self._name}: {text}\n")
            sys.stderr.flush()

    def close(self) -> None:
        """Write the last line, unless the log has one of the end."""
        if not logger.isEnabledFor(logging.INFO):
            self._add_line()


@cache
def _quiet_tqdm() -> Callable[..., Any]:
    from tqdm.auto import tqdm  # here, since it is slow to import and often not wanted

    class ThreadlessTqdm(tqdm):  # type: ignore[type-arg]
        """tqdm starts a monitor thread with its first bar, and processes must not be forked beside threads."""

        monitor_interval = 0
        title: str | None = None

        def set_postfix(self, *, refresh: bool, **shown: object) -> None:  # type: ignore[override]
            """Show these first: in a narrow terminal the end of the line is cut off."""
            self.title = self.desc if self.title is None else self.title
            words = [*(f"{name}={value}" for name, value in shown.items()), str(self.title)]
            self.set_description(" ".join(words), refresh=refresh)

        @property
        def format_dict(self) -> MutableMapping[str, Any]:
            """Cut the name, so that the counts have room behind it."""
            values = super().format_dict
            prefix = (values["prefix"] or "").removesuffix(": ")  # tqdm adds one, and without a total a second one
            total, n = values["total"], values["n"]
            room = len(f": 100%|#| {n}/{total}" if total else f": {n}obj")
            most = max(MIN_NAME, (values["ncols"] or sys.maxsize) - room)
            return {**values, "prefix": prefix[:most]}

    # tqdm's own lock holds a multiprocessing semaphore; the bar here is never written to by another process.
    ThreadlessTqdm.set_lock(threading.RLock())
    return ThreadlessTqdm


def _on_terminal() -> bool:
    return hasattr(sys.stderr, "isatty") and sys.stderr.isatty()  # None where there is no console


def open_progress(option: Any, total: Callable[[], int | None], description: str) -> Progress:
    """Give what the option `progress` asks for; None means a bar when stderr is a terminal.

    `total` is called only if it is shown: it may cost a query. Elsewhere than on a terminal a bar would leave a line of
    carriage returns; True gives lines there.
    """
    if option is False or (option is None and not _on_terminal()):
        return NullProgress()
    if option is True and not _on_terminal():
        return LastingProgress(partial(LogProgress, total(), description))
    if option is None or option is True:
        return LastingProgress(partial(BarProgress, _quiet_tqdm(), total(), description))
    if inspect.isclass(option) and hasattr(option, "update"):
        return BarProgress(option, total(), description)
    return CallbackProgress(option, total())


def end_line_before_bar(option: Any) -> None:
    """End the line that Django's `migrate` has begun on the terminal, which a bar would be drawn over."""
    if option in (None, True) and _on_terminal() and sys.stdout is not None and sys.stdout.isatty():
        sys.stderr.write("\n")
        sys.stderr.flush()


class RunLog:
    """Logs one run. Call `start`, then `add_causes` after failures, then `close`."""

    def __init__(self, name: str, report: Report[Any]) -> None:
        self._name = name
        self._report = report
        self._throttled_at = -LOG_INTERVAL

    def start(self, options: Options) -> None:
        """Log that workers have been started."""
        if not logger.isEnabledFor(logging.INFO):
            return
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
        """Whether a line is due about throttles: at most one every `LOG_INTERVAL` seconds."""
        return bool(reason) and time.monotonic() - self._throttled_at >= LOG_INTERVAL

    def add_throttle(self, reason: str, share: float) -> None:
        """Log why the run is slower than it could be, or waits."""
        self._throttled_at = time.monotonic()
        text = f"slowed down to {share:.0%}: {reason}" if share else f"held: {reason}"
        self._log(logging.WARNING, "throttled", printable(text), {"share": share, "reason": reason})

    def close(self) -> None:
        """Log the end with all counts, if the run has ended in this process."""
        if not self._report.finished:
            return
        self.add_causes()
        level = logging.WARNING if self._report.failed or self._report.lost else logging.INFO
        if logger.isEnabledFor(level):
            stopped = f"; stopped: {self._report.stopped}" if self._report.stopped else ""
            text = f"ended: {self._report._counts_text()} in {self._report.elapsed:.2f} s{stopped}"
            extra = {"elapsed": self._report.elapsed, "rate": self._report.rate, "stopped": self._report.stopped}
            self._log(level, "ended", text, extra)

    def _log(self, level: int, event: str, text: str, extra: dict[str, Any]) -> None:
        if logger.isEnabledFor(level):
            counts = {str(status): count for status, count in self._report._counts.items()}
            _write(level, self._name, event, text, {**extra, **counts, "total": self._report.total})


def _write(level: int, name: str, event: str, text: str, extra: dict[str, Any]) -> None:
    """Log one line. The fields have a prefix, since a record has an attribute `name`, and others have theirs."""
    fields = {"operation": name, "event": event, **extra}
    logger.log(level, "%s %s", name, text, extra={f"poolsave_{key}": value for key, value in fields.items()})


class RunDisplay:
    """What people see of one run. Call `start`, then `add` and `show_throttle`, then `close`."""

    def __init__(self, progress: Progress, log: RunLog) -> None:
        self._progress = progress
        self._log = log

    def __enter__(self) -> RunDisplay:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def start(self, options: Options) -> None:
        """Show that workers have been started."""
        self._progress.clear()
        self._log.start(options)

    def add(self, batches: list[OutcomeBatch]) -> None:
        """Show what has ended, and log new causes of failures on lines of their own."""
        has_failures = False
        for batch in batches:
            failed = 0
            if batch.notable:
                failed = sum(outcome.status in (Status.FAILED, Status.LOST) for outcome in batch.notable.values())
            self._progress.advance(len(batch.values), failed)
            has_failures = has_failures or failed > 0
        if has_failures and self._log.has_new_causes:
            self._progress.clear()
            self._log.add_causes()

    def show_throttle(self, meter: ThrottleMeter) -> None:
        """Show why the run is slower than it could be now."""
        self._progress.throttled(meter.reason)
        if self._log.wants_throttle(meter.reason):
            self._progress.clear()
            self._log.add_throttle(meter.reason, meter.share)

    def close(self) -> None:
        """Show the end."""
        try:
            self._progress.close()
        finally:
            self._log.close()
