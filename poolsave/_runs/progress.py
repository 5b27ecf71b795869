"""The progress of a run: a tqdm bar, a callable, or nothing. Runs and blocks open it; nothing else imports tqdm."""

from __future__ import annotations

import inspect
import sys
import threading
import time
from collections.abc import Callable, Sized
from contextlib import suppress
from functools import cache
from typing import Any, Protocol

from .._engine.throttling import ThrottleMeter
from .._reports.batches import OutcomeBatch
from ..errors import InvalidOption
from ..outcomes import Status
from .logs import LogProgress, RunLog
from .operation_spec import as_queryset

INTERVAL = 0.1
"""Seconds between two updates of a bar: short enough to look smooth, long enough to cost nothing."""


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
        if failed or time.monotonic() - self._updated_at >= INTERVAL:
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
        return LogProgress(total(), description)
    if option is None or option is True:
        return BarProgress(_quiet_tqdm(), total(), description)
    if inspect.isclass(option) and hasattr(option, "update"):
        return BarProgress(option, total(), description)
    return CallbackProgress(option, total())


def end_line_before_bar(option: Any) -> None:
    """End the line that Django's `migrate` has begun on the terminal, which a bar would be drawn over."""
    if option in (None, True) and _on_terminal() and sys.stdout is not None and sys.stdout.isatty():
        sys.stderr.write("\n")
        sys.stderr.flush()


def check_total(total: object, objects: Any) -> None:
    """Refuse a number of objects that is none, or not that of a list.

    The number of a queryset is not asked for: to know it costs a query, which a given one spares.

    Raises:
        InvalidOption: naming the number, and the right one.
    """
    if total is None:
        return
    if not isinstance(total, int) or isinstance(total, bool) or total < 0:
        raise InvalidOption("total", total, "give a whole number from 0, or None")
    length = total
    if isinstance(objects, Sized) and as_queryset(objects) is None:
        with suppress(OverflowError):  # a range longer than any list can be
            length = len(objects)
    if length != total:
        raise InvalidOption("total", total, f"there are {length} objects; leave it out, or give it for a generator")


def log_causes(log: RunLog, progress: Progress) -> None:
    """Log new causes of failures, on lines of their own."""
    if log.has_new_causes:
        progress.clear()
        log.add_causes()


def show_throttle(log: RunLog, progress: Progress, meter: ThrottleMeter | None) -> None:
    """Show why the run is slower than it could be now, if it has throttles."""
    if meter is None:
        return
    progress.throttled(meter.reason)
    if log.wants_throttle(meter.reason):
        progress.clear()
        log.add_throttle(meter.reason, meter.share)


def advance_progress(progress: Progress, batches: list[OutcomeBatch]) -> None:
    """Add the ended objects of some batches to the progress."""
    for batch in batches:
        failed = sum(outcome.status in (Status.FAILED, Status.LOST) for outcome in batch.notable.values())
        progress.advance(len(batch.values), failed)
