"""The parent's side of one worker process: its pipes, its shared marks, its start and its exit.

Only `ProcessExecutor` uses it.
"""

from __future__ import annotations

import errno
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
from .pipes import Inbox, InheritedFile, Outbox, above_standard, nameless_file, pipe
from .shared_marks import SharedMarks
from .worker_main import WorkerPipes, main

GRACE = 1.0
"""Seconds between the time-out of an object and SIGTERM for its worker, and again until SIGKILL."""
UNKNOWN_EXIT = 255
"""What multiprocessing gives as the exit code of a process if its fork server has ended. Any other code says that the
process was reaped, so that its number may be another process's by now."""
POLL_INTERVAL = 0.001
"""Polling interval in seconds for the exit of a process without a descriptor."""
NO_SUCH_CALL = (errno.ENOSYS, errno.EINVAL)
"""What `pidfd_open` fails with on an old kernel."""


class WorkerHandle:
    """The parent's side of one worker process."""

    def __init__(self, longest: int) -> None:
        self.tasks: deque[Task] = deque()
        self.is_set_up = False
        self.joining = False
        """Whether it has been added to workers that run, and is not set up yet."""
        self.retiring = False
        """Whether it gets no more tasks, and is not replaced."""
        self.overdue = False
        self._process: Any = None
        self._descriptor: int | None = None
        self._open: list[Connection[Any, Any]] = []
        self._stack = ExitStack()
        with self._stack:
            self._open_resources(longest)
            self._stack = self._stack.pop_all()

    def _open_resources(self, longest: int) -> None:
        self._stack.callback(self.close_pipes)
        self.marks, self._marks_fd = SharedMarks.create(longest)
        self._stack.callback(self.marks.close)
        self._stack.callback(os.close, self._marks_fd)
        self._crash_log_fd = nameless_file()
        self._stack.callback(os.close, self._crash_log_fd)
        task_reader, self._task_writer = self._pipe()
        self._reply_reader, reply_writer = self._pipe()
        self._worker_ends = (task_reader, reply_writer)
        self.outbox = Outbox(self._task_writer.fileno())
        self.inbox = Inbox(self._reply_reader.fileno())

    def _pipe(self) -> tuple[Connection[Any, Any], Connection[Any, Any]]:
        ends = pipe()
        self._open += ends
        return ends

    def start(self, method: str, job_or_bytes: Any) -> None:
        self.started_at = time.perf_counter()
        pipes = WorkerPipes(*self._worker_ends, InheritedFile(self._marks_fd), InheritedFile(self._crash_log_fd))
        context: Any = multiprocessing.get_context(method)
        arguments: tuple[Any, ...] = (job_or_bytes, pipes, self.joining)
        if method == "fork":
            arguments = (*arguments, self._close_parent_ends)
        # Daemonic, so that an interpreter that exits with a pool open ends its workers instead of waiting for them.
        self._process = context.Process(target=main, args=arguments, name="poolsave-worker", daemon=True)
        with _forking() if method == "fork" else nullcontext():
            self._start()
        self.pid: int = self._process.pid
        self._descriptor = process_descriptor(self.pid)
        self.sentinel: int = self._process.sentinel if self._descriptor is None else self._descriptor
        # With the parent's copies open, the worker's exit would neither end its replies nor break the pipe of its
        # tasks.
        for end in self._worker_ends:
            end.close()

    def _start(self) -> None:
        try:
            self._process.start()
        except (
            EOFError,
            ConnectionError,
        ) as error:  # the fork server has ended, as it does over a script without a guard
            raise WorkerDied(1, details=f"Python's fork server has ended, which was to start it: {error!r}") from error

    def _close_parent_ends(self) -> None:
        self._task_writer.close()
        self._reply_reader.close()

    def is_alive(self) -> bool:
        if self._descriptor is None:
            return bool(self._process.is_alive())
        return not self._has_ended(0)

    def _has_ended(self, seconds: float | None) -> bool:
        """Wait up to `seconds` for the exit of the process itself (None: as long as it takes)."""
        if self._descriptor is None:
            self._process.join(seconds)
            return not self._process.is_alive()
        return bool(wait([self._descriptor], seconds))

    def end(self) -> None:
        """Wait for the exit of a process that seems to have ended. Its marks are final only after that.

        The sentinel alone is no proof: the fork server may have ended, or a function may have closed descriptors that
        are not its own. So without a descriptor of the process, the worker is killed first.
        """
        if self._descriptor is None and self._process.exitcode in (None, UNKNOWN_EXIT):
            with suppress(ProcessLookupError, PermissionError):  # reaped, and perhaps the number is another user's now
                os.kill(self.pid, signal.SIGKILL)
            self._wait_until_gone()
        self._process.join()

    def _wait_until_gone(self) -> None:
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline:
            self._process.join(0)  # reaps the process if it is a child of this one
            try:
                os.kill(self.pid, 0)
            except (ProcessLookupError, PermissionError):
                return
            time.sleep(POLL_INTERVAL)

    def exit_event(self) -> Died:
        """Say what the worker was running. Its replies have been read before."""
        exitcode = self._process.exitcode
        error = WorkerDied(exitcode, _signal_name(exitcode), details=self._crash_traceback())
        # Otherwise it had not begun the first one of its tasks, as the order in `SharedMarks.begin` makes sure.
        if self.tasks and self.marks.task == self.tasks[0].id:
            running = self.tasks.popleft()
            queued = tuple(task.id for task in self.tasks)
            marks = self.marks.of_task(running.size)
            return Died(error, running.id, marks, queued, self.marks.last_note, self.overdue, self.pid)
        return Died(error, None, b"", tuple(task.id for task in self.tasks), worker=self.pid)

    def _crash_traceback(self) -> str:
        """What faulthandler wrote when the process crashed."""
        size = os.fstat(self._crash_log_fd).st_size
        return os.pread(self._crash_log_fd, size, 0).decode(errors="replace")

    def check_time(self, timeout: float) -> None:
        """End the worker if its object still runs after its time-out, which has raised an exception in it."""
        started = self.marks.object_started
        if not started or not self.tasks:
            return
        late = time.monotonic() - started - timeout
        if late > GRACE and not self.overdue:
            self.overdue = True
            self._signal_group(signal.SIGTERM)
        elif late > 2 * GRACE:
            self.kill()

    def kill(self) -> None:
        """End the process and all processes that it has started, at once."""
        self._signal_group(signal.SIGKILL)

    def _signal_group(self, signum: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, signum)
        except ProcessLookupError:  # it does not lead a group yet, or it has exited
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signum)

    def join(self, deadline: float) -> None:
        """Wait until the process has exited. It is killed at the deadline."""
        if not self._has_ended(max(0.0, deadline - time.monotonic())):
            self.kill()
            self._has_ended(None)
        self._process.join()

    def abort(self) -> None:
        """Clean up a worker whose start was interrupted."""
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
        """In a forked child: close the copies of the pipes, and hide the worker from multiprocessing.

        At exit, multiprocessing would end the worker as if it were a child of this process."""
        self.close_pipes()
        process._children.discard(self._process)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Release all resources of a worker that has exited or was never started."""
        self._stack.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self._process is not None:
            with suppress(
                ValueError
            ):  # if the host ignores SIGCHLD, multiprocessing does not know that the process has exited
                self._process.close()


@contextmanager
def _forking() -> Iterator[None]:
    """Fork with SIGINT and SIGTERM blocked, so that the parent's handlers never run in the child."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        with warnings.catch_warnings():
            if threading.current_thread() is not threading.main_thread():
                # Beside another thread only a replacement is forked, and only if its function cannot be pickled.
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


def process_descriptor(pid: int) -> int | None:
    """Return a descriptor that becomes readable when the process exits; None if the system offers none.

    A process's sentinel is a pipe. It also ends if a function closes descriptors that are not its own, or if the fork
    server exits, and it does not end while a child that has inherited it lives.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return above_standard(os.pidfd_open(pid))
    except (ProcessLookupError, PermissionError):  # exited and reaped by the host; a sandbox
        return None
    except OSError as error:
        if error.errno in NO_SUCH_CALL:
            return None
        raise
