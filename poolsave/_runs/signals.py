"""Ctrl-C and SIGTERM in order: the first ends the feeding, the second the workers, and the report survives both."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from types import FrameType
from typing import Any

_signal: Any = import_module("_signal")
"""What `signal` wraps. It would make an enum of every handler, and find by an exception that it is none, which makes up
a third of what a run over one object costs."""

TERMINATED = 128 + signal.SIGTERM
"""The exit status of a process that left because of SIGTERM."""
DEFAULTS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _signal.SIG_DFL}


class InterruptGuard:
    """While entered, counts signals instead of letting them raise in the middle of poolsave's own book-keeping.

    A handler that the program has set for a signal itself is left in place. Nothing is done outside the main thread,
    which is the only one that Python delivers signals to. In a daemonic process (a worker of a pool) SIGTERM is left
    alone: by it that pool ends its workers, and it waits for them.
    """

    def __init__(self, notice: Callable[[], None], *, at_once: Callable[[int], bool]) -> None:
        self._notice = notice
        self._at_once = at_once
        self._taken: list[signal.Signals] = []
        self._owner: FrameType | None = None
        """Who has entered: the handlers are for as long as that runs, whatever becomes of the leaving."""
        self.count = 0
        self._last = signal.SIGINT

    def __enter__(self) -> InterruptGuard:
        self.enter_for(sys._getframe(1))
        return self

    def enter_for(self, owner: FrameType) -> None:
        """Enter for whoever runs in that frame."""
        self._owner = owner
        if threading.current_thread() is threading.main_thread():
            for signum in DEFAULTS:
                if signum is signal.SIGTERM and multiprocessing.current_process().daemon:
                    continue
                if _is_free(signum):
                    self._taken.append(signum)
                    _signal.signal(signum, self._handle)

    def __exit__(self, *_exc_info: object) -> None:
        while self._taken:
            signum = self._taken.pop()
            _signal.signal(signum, DEFAULTS[signum])
        self._owner = None  # whose locals would live on

    def suspended(self) -> SuspendedGuard:
        """Let signals do what they do elsewhere, while the caller's own code runs."""
        return SuspendedGuard(self)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.is_left_behind(frame):
            _signal.signal(signum, DEFAULTS[signal.Signals(signum)])
            signal.raise_signal(signum)
            return
        self.count += 1
        self._last = signal.Signals(signum)
        if self._at_once(self.count):
            raise self.as_exception()
        self._notice()

    def is_left_behind(self, frame: FrameType | None) -> bool:
        """Whether its handlers are still there although nobody runs, on the stack of this frame, whom they are for.

        An exception of another signal's handler, a time limit's say, may come at any moment, also before they are taken
        away or in the middle of it, so that nothing that is noted by then would tell.
        """
        while frame is not None:
            if frame is self._owner:
                return False
            frame = frame.f_back
        return True

    def raise_if_interrupted(self) -> None:
        """Raise what was held back."""
        if self.count:
            raise self.as_exception()

    def as_exception(self) -> BaseException:
        """What the last signal does to a Python program: KeyboardInterrupt, or SystemExit with status 143."""
        return SystemExit(TERMINATED) if self._last is signal.SIGTERM else KeyboardInterrupt()


class SuspendedGuard:
    """What is entered to leave, and left to enter again."""

    def __init__(self, interrupts: InterruptGuard) -> None:
        self._interrupts = interrupts

    def __enter__(self) -> None:
        self._interrupts.__exit__()

    def __exit__(self, *_exc_info: object) -> None:
        self._interrupts.enter_for(sys._getframe(1))


def _is_free(signum: signal.Signals) -> bool:
    found = _signal.getsignal(signum)
    owner = getattr(found, "__self__", None)
    return found == DEFAULTS[signum] or (isinstance(owner, InterruptGuard) and owner.is_left_behind(sys._getframe()))
