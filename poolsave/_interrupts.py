"""Ctrl-C and SIGTERM in order: the first ends the feeding, the second the workers, and the report survives both."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any

__all__ = ["Interrupts"]

_signal: Any = import_module("_signal")
"""What `signal` wraps. It would make an enum of every handler, and find by an exception that it is none, which makes up
a third of what a run over one object costs."""

TERMINATED = 128 + signal.SIGTERM
"""The exit status of a process that left because of SIGTERM."""
DEFAULTS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class Interrupts:
    """While entered, counts signals instead of letting them raise in the middle of poolsave's own book-keeping.

    A handler that the program has set for a signal itself is left in place. Nothing is done outside the main thread,
    which is the only one that Python delivers signals to. In a daemonic process (a worker of a pool) SIGTERM is left
    alone: by it that pool ends its workers, and it waits for them.
    """

    def __init__(self, notice: Callable[[], None], *, at_once: Callable[[int], bool]) -> None:
        self._notice = notice
        self._at_once = at_once
        self._before: dict[signal.Signals, Any] = {}
        self.count = 0
        self._last = signal.SIGINT

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for signum, default in DEFAULTS.items():
                if signum is signal.SIGTERM and multiprocessing.current_process().daemon:
                    continue
                if _signal.getsignal(signum) == default:
                    self._before[signum] = _signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_exc_info: object) -> None:
        while self._before:
            _signal.signal(*self._before.popitem())

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Let signals do what they do elsewhere, while the caller's own code runs."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
        self._last = signal.Signals(signum)
        if self._at_once(self.count):
            raise self.as_exception()
        self._notice()

    def as_exception(self) -> BaseException:
        """What the last signal does to a Python program: KeyboardInterrupt, or SystemExit with status 143."""
        return SystemExit(TERMINATED) if self._last is signal.SIGTERM else KeyboardInterrupt()
