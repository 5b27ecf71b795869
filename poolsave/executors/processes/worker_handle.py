"""The parent's side of one worker process: its pipes, its state block, its birth and its death."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.connection import Connection
from typing import Any

from ...errors import WorkerDied
from ..protocol import Died, Task
from .pipes import Inbox, Outbox
from .shared_marks import SharedMarks
from .worker_main import WorkerPipes, main

GRACE = 1.0
"""Seconds after its time-out until a worker is terminated, and again until it is killed."""


class WorkerHandle:
    """The parent's side of one worker process."""

    def __init__(self, longest: int) -> None:
        self.tasks: deque[Task] = deque()
        self.settled = False
        self._process: Any = None
        self.overdue = False
        self.state, self._state_path = SharedMarks.create(longest)
        self._fault_file = open(f"{self._state_path}.fault", "x+")  # noqa: SIM115  open while the worker lives
        self._open: list[Connection[Any, Any]] = []
        their_tasks, self._our_tasks = self._pipe()
        self._our_replies, their_replies = self._pipe()
        self._theirs = (their_tasks, their_replies)
        self.outbox = Outbox(self._our_tasks.fileno())
        self.inbox = Inbox(self._our_replies.fileno())

    def _pipe(self) -> tuple[Connection[Any, Any], Connection[Any, Any]]:
        ends = multiprocessing.Pipe(duplex=False)
        self._open += ends
        return ends

    def start(self, method: str, parcel: Any, close_copies: Callable[[], None]) -> None:
        self.born = time.perf_counter()
        line = WorkerPipes(*self._theirs, self._state_path)
        context: Any = multiprocessing.get_context(method)
        arguments: tuple[Any, ...] = (parcel, line)
        if method == "fork":
            arguments = (parcel, line, self._in_child(close_copies))
        # Daemonic, so that an interpreter that exits with a pool open ends its workers instead of waiting for them.
        self._process = context.Process(target=main, args=arguments, name="poolsave-worker", daemon=True)
        with _forking() if method == "fork" else nullcontext():
            self._start()
        self.sentinel: int = self._process.sentinel
        self.pid: int = self._process.pid
        for end in self._theirs:
            end.close()

    def _start(self) -> None:
        try:
            self._process.start()
        except (EOFError, ConnectionError) as error:  # a fork server that has ended: unguarded scripts have it end
            raise WorkerDied(1, details=f"Python's fork server has ended, which was to start it: {error!r}") from error

    def _in_child(self, close_copies: Callable[[], None]) -> Callable[[], None]:
        def close() -> None:
            close_copies()
            self._our_tasks.close()
            self._our_replies.close()

        return close

    def alive(self) -> bool:
        return bool(self._process.is_alive())

    def death_certificate(self) -> Died:
        """Say what the worker was at. Its last words were read before."""
        self._process.join()
        error = WorkerDied(self._process.exitcode, _signal_name(self._process.exitcode), details=self._last_words())
        if self.tasks and self.state.task == self.tasks[0].id:
            running = self.tasks.popleft()
            queued = tuple(task.id for task in self.tasks)
            marks = self.state.marks(running.size)
            return Died(error, running.id, marks, queued, self.state.noted, self.overdue, self.pid)
        return Died(error, None, b"", tuple(task.id for task in self.tasks), worker=self.pid)

    def _last_words(self) -> str:
        """What faulthandler wrote when the process crashed."""
        self._fault_file.seek(0)
        return self._fault_file.read()

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
        self._process.join(max(0.0, deadline - time.monotonic()))
        if self._process.is_alive():
            self.kill()
            self._process.join()

    def close_pipes(self) -> None:
        for end in self._open:
            if not end.closed:
                end.close()

    def close(self) -> None:
        """Give back everything of a worker that has ended or was never started."""
        self.close_pipes()
        self.state.close()
        self._fault_file.close()
        SharedMarks.remove(self._state_path)  # if the worker did not come so far
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
