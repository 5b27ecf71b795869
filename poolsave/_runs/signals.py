"""Ctrl-C and SIGTERM in order: the first ends the feeding, the second the workers, and the report survives both.

Runs and blocks use it around their own bookkeeping. What a signal then does is up to them.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from types import FrameType
from typing import Any

from .._runtime.foreign_exceptions import attach_report
from ..reports import Report

_signal: Any = import_module("_signal")
"""The C module: `signal.signal` converts handlers to enums, a third of the cost of a one-object run."""

TERMINATED = 128 + signal.SIGTERM
"""The exit status of a process that SIGTERM ended."""
DEFAULTS = {int(signal.SIGINT): signal.default_int_handler, int(signal.SIGTERM): _signal.SIG_DFL}
"""By plain numbers, since the enum's have a hash in Python."""


def report_interrupt(error: KeyboardInterrupt, report: Report[Any] | None) -> None:
    """Give an interrupt the report of what it has ended, unless it has one; an empty report if nothing had begun."""
    if "report" in vars(error):
        return
    report = Report() if report is None else report
    if not report.finished:
        report._finish("interrupted")
    attach_report(error, report)


class InterruptGuard:
    """While entered, counts signals instead of letting them raise in the middle of poolsave's own book-keeping.

    A handler that the program has set for a signal itself is left in place. Nothing is done outside the main thread,
    which is the only one that Python delivers signals to. In a daemonic process (a worker of a pool) SIGTERM is left
    alone: by it that pool ends its workers, and it waits for them.
    """

    def __init__(self, notice: Callable[[], None], *, at_once: Callable[[int], bool]) -> None:
        self._notice = notice
        self._at_once = at_once
        self._handled: list[int] = []
        self._owner: FrameType | None = None
        """Frame of the `with` block. The handlers are valid only while it is on the stack."""
        self._leaving = False
        """While handlers are taken away. An interrupt that were raised then would leave the others in place."""
        self.count = 0
        self._last = signal.SIGINT

    def __enter__(self) -> InterruptGuard:
        self.enter_for(sys._getframe(1))
        return self

    def enter_for(self, owner: FrameType) -> None:
        """Enter for the code that runs in a frame."""
        self._owner = owner
        self._leaving = False
        if threading.current_thread() is threading.main_thread():
            for signum, default in DEFAULTS.items():
                if signum == signal.SIGTERM and multiprocessing.current_process().daemon:
                    continue
                handler = _signal.getsignal(signum)
                if handler == default or _is_left_behind(handler):
                    self._handled.append(signum)
                    _signal.signal(signum, self._handle)

    def __exit__(self, *_exc_info: object) -> None:
        self._leaving = True
        while self._handled:
            _signal.signal(self._handled[-1], DEFAULTS[self._handled[-1]])
            self._handled.pop()
        self._owner = None  # the frame would keep its locals alive

    def suspended(self) -> SuspendedGuard:
        """Give signals their usual effect while the caller's own code runs."""
        return SuspendedGuard(self)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.is_stale(frame):
            _signal.signal(signum, DEFAULTS[signum])
            signal.raise_signal(signum)
            return
        self.count += 1
        self._last = signal.Signals(signum)
        if not self._leaving and self._at_once(self.count):
            raise self.as_exception()
        self._notice()

    def is_stale(self, frame: FrameType | None) -> bool:
        """Whether the handlers are still in place although their owner is not on the stack of this frame.

        Another handler (a SIGALRM time limit) may raise inside `__exit__`, so no flag set there is reliable; the stack
        is.
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
    """A context in which an InterruptGuard is off."""

    def __init__(self, interrupts: InterruptGuard) -> None:
        self._interrupts = interrupts

    def __enter__(self) -> None:
        self._interrupts.__exit__()

    def __exit__(self, *_exc_info: object) -> None:
        self._interrupts.enter_for(sys._getframe(1))


def _is_left_behind(handler: Any) -> bool:
    """Whether it is a guard's, which has ended without taking it away."""
    owner = getattr(handler, "__self__", None)
    return isinstance(owner, InterruptGuard) and owner.is_stale(sys._getframe())
