"""The parent's side of one worker process: its pipes, its state block, its birth and its death."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from multiprocessing import process
from multiprocessing.connection import Connection, wait
from typing import Any

from ...errors import WorkerDied
from ..protocol import Died, Task
from .descriptors import InheritedFile, nameless_file, pipe, process_descriptor
from .pipes import Inbox, Outbox
from .shared_marks import SharedMarks
from .worker_main import WorkerPipes, main

GRACE = 1.0
"""Seconds after its time-out until a worker is terminated, and again until it is killed."""
POLL_INTERVAL = 0.001
"""Seconds between looks at a process of which nothing tells that it has ended."""


class WorkerHandle:
    """The parent's side of one worker process."""

    def __init__(self, longest: int) -> None:
        self.tasks: deque[Task] = deque()
        self.settled = False
        self.overdue = False
        self._process: Any = None
        self._descriptor: int | None = None
        self._open: list[Connection[Any, Any]] = []
        self._stack = ExitStack()
        with self._stack:
            self._make_ends(longest)
            self._stack = self._stack.pop_all()

    def _make_ends(self, longest: int) -> None:
        self._stack.callback(self.close_pipes)
        self.state, self._marks = SharedMarks.create(longest)
        self._stack.callback(self.state.close)
        self._stack.callback(os.close, self._marks)
        self._faults = nameless_file()
        self._stack.callback(os.close, self._faults)
        their_tasks, self._our_tasks = self._pipe()
        self._our_replies, their_replies = self._pipe()
        self._theirs = (their_tasks, their_replies)
        self.outbox = Outbox(self._our_tasks.fileno())
        self.inbox = Inbox(self._our_replies.fileno())

    def _pipe(self) -> tuple[Connection[Any, Any], Connection[Any, Any]]:
        ends = pipe()
        self._open += ends
        return ends

    def start(self, method: str, parcel: Any) -> None:
        self.born = time.perf_counter()
        line = WorkerPipes(*self._theirs, InheritedFile(self._marks), InheritedFile(self._faults))
        context: Any = multiprocessing.get_context(method)
        arguments: tuple[Any, ...] = (parcel, line)
        if method == "fork":
            arguments = (parcel, line, self._close_ours)
        # Daemonic, so that an interpreter that exits with a pool open ends its workers instead of waiting for them.
        self._process = context.Process(target=main, args=arguments, name="poolsave-worker", daemon=True)
        with _forking() if method == "fork" else nullcontext():
            self._start()
        self.pid: int = self._process.pid
        self._descriptor = process_descriptor(self.pid)
        self.sentinel: int = self._process.sentinel if self._descriptor is None else self._descriptor
        for end in self._theirs:
            end.close()

    def _start(self) -> None:
        try:
            self._process.start()
        except (EOFError, ConnectionError) as error:  # a fork server that has ended: unguarded scripts have it end
            raise WorkerDied(1, details=f"Python's fork server has ended, which was to start it: {error!r}") from error

    def _close_ours(self) -> None:
        self._our_tasks.close()
        self._our_replies.close()

    def alive(self) -> bool:
        if self._descriptor is None:
            return bool(self._process.is_alive())
        return not self._has_ended(0)

    def _has_ended(self, seconds: float | None) -> bool:
        """Wait so long, or as long as it takes, for the process's real end."""
        if self._descriptor is None:
            self._process.join(seconds)
            return not self._process.is_alive()
        return bool(wait([self._descriptor], seconds))

    def end(self) -> None:
        """Wait for the end of a process that seems to have ended: what it has marked counts only then.

        Where only the sentinel tells of it, that may have been the fork server's end, or a function that has closed
        descriptors which it did not know. So the worker is ended first.
        """
        if self._descriptor is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._wait_until_gone()
        self._process.join()

    def _wait_until_gone(self) -> None:
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline:
            self._process.join(0)  # a child of this process stays until it is asked for its status
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(POLL_INTERVAL)

    def death_certificate(self) -> Died:
        """Say what the worker was at. Its last words were read before."""
        error = WorkerDied(self._process.exitcode, _signal_name(self._process.exitcode), details=self._last_words())
        if self.tasks and self.state.task == self.tasks[0].id:
            running = self.tasks.popleft()
            queued = tuple(task.id for task in self.tasks)
            marks = self.state.marks(running.size)
            return Died(error, running.id, marks, queued, self.state.noted, self.overdue, self.pid)
        return Died(error, None, b"", tuple(task.id for task in self.tasks), worker=self.pid)

    def _last_words(self) -> str:
        """What faulthandler wrote when the process crashed."""
        size = os.fstat(self._faults).st_size
        return os.pread(self._faults, size, 0).decode(errors="replace")

    def check_time(self, timeout: float) -> None:
        """End the worker if its object takes too long although it was told by an exception."""
        began = self.state.began
        if not began or not self.tasks:
            return
        late = time.monotonic() - began - timeout
        if late > GRACE and not self.overdue:
            self.overdue = True
            self._signal_tree(signal.SIGTERM)
        elif late > 2 * GRACE:
            self.kill()

    def kill(self) -> None:
        """End the process and all that it has started, at once."""
        self._signal_tree(signal.SIGKILL)

    def _signal_tree(self, signum: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, signum)
        except ProcessLookupError:  # it has not come so far as to lead a group, or it is gone
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signum)

    def join(self, deadline: float) -> None:
        """Wait until the process has ended, and help it along after the deadline."""
        if not self._has_ended(max(0.0, deadline - time.monotonic())):
            self.kill()
            self._has_ended(None)
        self._process.join()

    def abort(self) -> None:
        """Leave nothing of a worker whose start was broken off."""
        if self._process is not None and self._process.pid is not None:
            self.pid = self._process.pid
            self.kill()
            self._process.join()
        self.close()

    def close_pipes(self) -> None:
        for end in self._open:
            if not end.closed:
                end.close()

    def let_go(self) -> None:
        """In a forked child: close the copies of the pipes, and keep multiprocessing from ending what it takes for a
        child of this process, too, when it exits."""
        self.close_pipes()
        process._children.discard(self._process)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Give back everything of a worker that has ended or was never started."""
        self._stack.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self._process is not None:
            with suppress(ValueError):  # a host that ignores SIGCHLD makes its children's ends unknown
                self._process.close()


@contextmanager
def _forking() -> Iterator[None]:
    """Fork with SIGINT and SIGTERM held back, so that the child has no time in which the parent's handlers run."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        with warnings.catch_warnings():
            if threading.current_thread() is not threading.main_thread():
                # Beside another thread only a replacement is forked, whose function cannot be pickled.
                warnings.filterwarnings("ignore", r".*multi-threaded", DeprecationWarning)
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _signal_name(exitcode: int | None) -> str | None:
    if exitcode is None or exitcode >= 0:
        return None
    try:
        return signal.Signals(-exitcode).name
    except ValueError:
        return f"signal {-exitcode}"
