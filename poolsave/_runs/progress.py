"""The progress of a run: a tqdm bar, a callable, or nothing. Runs and blocks open it; nothing else imports tqdm."""

from __future__ import annotations

import inspect
import sys
import threading
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Protocol

from .._reports.batches import OutcomeBatch
from ..outcomes import Status

INTERVAL = 0.1
"""Seconds between two updates of a bar: short enough to look smooth, long enough to cost nothing."""

LOG_INTERVAL = 10.0
"""Seconds between two updates where stderr is no terminal: each update stays there as a line."""


class Progress(Protocol):
    """Receives counts of objects, never of chunks."""

    def advance(self, done: int, failed: int) -> None:
        """Add `done` objects that have ended, of which `failed` have failed or were lost."""

    def close(self) -> None:
        """End: nothing more comes."""


class NullProgress:
    """Shows nothing."""

    def advance(self, done: int, failed: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class CallbackProgress:
    """Calls a callable with `(done, total)` after every chunk; `total` is None while it is unknown."""

    def __init__(self, callback: Callable[[int, int | None], object], total: int | None) -> None:
        self._callback = callback
        self._total = total
        self._done = 0

    def advance(self, done: int, failed: int) -> None:
        self._done += done
        self._callback(self._done, self._total)

    def close(self) -> None:
        """Do nothing."""


class BarProgress:
    """A tqdm-like bar that counts objects and shows failures."""

    def __init__(self, make: Callable[..., Any], total: int | None, description: str) -> None:
        self._bar = make(total=total, desc=description, unit="obj")
        self._pending = 0
        self._failed = 0
        self._updated_at = 0.0

    def advance(self, done: int, failed: int) -> None:
        self._pending += done
        self._failed += failed
        if failed or time.monotonic() - self._updated_at >= INTERVAL:
            self._show(failed)

    def _show(self, failed: int) -> None:
        if failed and hasattr(self._bar, "set_postfix"):
            self._bar.set_postfix(failed=self._failed, refresh=False)
        self._bar.update(self._pending)
        self._pending = 0
        self._updated_at = time.monotonic()

    def close(self) -> None:
        self._bar.update(self._pending)
        self._bar.close()


@cache
def _quiet_tqdm() -> Callable[..., Any]:
    from tqdm.auto import tqdm  # here, since it is slow to import and often not wanted

    class ThreadlessTqdm(tqdm):  # type: ignore[type-arg]
        """tqdm starts a monitor thread with its first bar, and processes must not be forked beside threads."""

        monitor_interval = 0

    # tqdm's own lock holds a multiprocessing semaphore; the bar here is never written to by another process.
    ThreadlessTqdm.set_lock(threading.RLock())
    return ThreadlessTqdm


def _on_terminal() -> bool:
    return hasattr(sys.stderr, "isatty") and sys.stderr.isatty()  # None where there is no console


def open_progress(option: Any, total: Callable[[], int | None], description: str) -> Progress:
    """Give what the option `progress` asks for; None means a bar when stderr is a terminal.

    `total` is called only if it is shown: it may cost a query.
    """
    if option is None:
        option = _on_terminal()
    if option is False:
        return NullProgress()
    if option is True:
        return BarProgress(
            _quiet_tqdm() if _on_terminal() else partial(_quiet_tqdm(), mininterval=LOG_INTERVAL), total(), description
        )
    if inspect.isclass(option) and hasattr(option, "update"):
        return BarProgress(option, total(), description)
    return CallbackProgress(option, total())


def advance_progress(progress: Progress, batches: list[OutcomeBatch]) -> None:
    """Add the ended objects of some batches to the progress."""
    for batch in batches:
        failed = sum(outcome.status in (Status.FAILED, Status.LOST) for outcome in batch.notable.values())
        progress.advance(len(batch.values), failed)
