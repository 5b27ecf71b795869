"""Telling how far a run is: a tqdm bar, any callable, or silence."""

from __future__ import annotations

import inspect
import sys
import threading
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Protocol

INTERVAL = 0.1
"""Seconds between two updates of a bar: often enough for an eye, rare enough to cost nothing."""

IN_A_LOG = 10.0
"""Seconds between two updates where stderr is no terminal, and so every one of them stays."""


class Progress(Protocol):
    """What the engine tells: counts of objects, never of chunks."""

    def advance(self, done: int, failed: int) -> None:
        """So many more objects have ended, of which so many have failed or were lost."""

    def close(self) -> None:
        """Nothing more will come."""


class NullProgress:
    """No progress is wanted."""

    def advance(self, done: int, failed: int) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Say nothing."""


class CallbackProgress:
    """A callable, told `(done, total)` after every chunk; `total` is None while it is unknown."""

    def __init__(self, tell: Callable[[int, int | None], object], total: int | None) -> None:
        self._tell = tell
        self._total = total
        self._done = 0

    def advance(self, done: int, failed: int) -> None:
        self._done += done
        self._tell(self._done, self._total)

    def close(self) -> None:
        """Nothing to give back."""


class BarProgress:
    """A tqdm-like bar that counts objects and shows failures."""

    def __init__(self, make: Callable[..., Any], total: int | None, description: str) -> None:
        self._bar = make(total=total, desc=description, unit="obj")
        self._unseen = 0
        self._failed = 0
        self._shown = 0.0

    def advance(self, done: int, failed: int) -> None:
        self._unseen += done
        self._failed += failed
        if failed or time.monotonic() - self._shown >= INTERVAL:
            self._show(failed)

    def _show(self, failed: int) -> None:
        if failed and hasattr(self._bar, "set_postfix"):
            self._bar.set_postfix(failed=self._failed, refresh=False)
        self._bar.update(self._unseen)
        self._unseen = 0
        self._shown = time.monotonic()

    def close(self) -> None:
        self._bar.update(self._unseen)
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


def open_progress(wish: Any, total: Callable[[], int | None], description: str) -> Progress:
    """Give what the option `progress` asks for; None means a bar when stderr is a terminal.

    `total` is asked only if somebody is told: it may cost a query.
    """
    if wish is None:
        wish = _on_terminal()
    if wish is False:
        return NullProgress()
    if wish is True:
        return BarProgress(
            _quiet_tqdm() if _on_terminal() else partial(_quiet_tqdm(), mininterval=IN_A_LOG), total(), description
        )
    if inspect.isclass(wish) and hasattr(wish, "update"):
        return BarProgress(wish, total(), description)
    return CallbackProgress(wish, total())
