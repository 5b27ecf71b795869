"""Worker processes with one private pair of pipes each, driven by the caller's thread alone.

There is no shared queue, so there is no lock that a killed worker could leave held; and there is no thread in the
parent, so that it can fork, also to replace a worker that has died.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import selectors
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any
from weakref import WeakSet

from .._envelopes import unpack_error
from ..errors import WorkerDied
from ._channels import Inbox, Outbox
from ._process_main import FINAL, PARTIAL, READY, SETUP_FAILED, STOP, TASK_HEADER, Line, main
from ._starting import choose_start_method, ensure_forkserver
from ._states import StateBlock
from .protocol import Died, Event, Job, Replied, SetupFailed, Task

__all__ = ["ProcessExecutor"]

HEARTBEAT = 0.5
"""Seconds between looks at workers whose end nobody told, since a child of theirs keeps their pipes open."""
PATIENCE = 5.0
"""Seconds that a worker gets to close its connections and leave, before it is killed."""
STILLBORN_LIMIT = 3
"""Workers in a row that may die before they are set up, until the run is given up."""


_started: WeakSet[ProcessExecutor] = WeakSet()


class ProcessExecutor:
    """Runs tasks in processes of its own and knows exactly what each of them was at when it died."""

    shares_memory = False
    inline = False

    def __init__(self, *, start_method: str | None = None) -> None:
        self._wish = start_method
        self._workers: list[_Worker] = []
        self._wanted = 0
        self._stillborn = 0
        self._halted = False

    @property
    def workers(self) -> int:
        return self._wanted

    def start(self, job: Job, *, workers: int, longest: int) -> None:
        self._method = choose_start_method(self._wish)
        self._parcel: Any = job if self._method == "fork" else pickle.dumps(job, pickle.HIGHEST_PROTOCOL)
        self._waker = Waker()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._waker.reader, selectors.EVENT_READ, None)
        _started.add(self)
        self._job = job
        self._longest = longest
        if self._method == "forkserver":
            ensure_forkserver(job.preload)
        self._wanted = workers
        for _ in range(workers):
            self._start_worker()

    def _start_worker(self) -> None:
        worker = _Worker(self._longest)
        try:
            worker.start(self._method, self._parcel, self._job.before_fork, self._close_copies)
        except BaseException:
            worker.close()
            raise
        self._workers.append(worker)
        self._selector.register(worker.inbox.fd, selectors.EVENT_READ, worker)
        self._selector.register(worker.sentinel, selectors.EVENT_READ, worker)

    def _close_copies(self) -> None:
        """In a forked child: close what it inherited, or other workers, of any pool, would not notice our end."""
        for executor in list(_started):
            for worker in executor._workers:
                worker.close_pipes()
            executor._selector.close()
            executor._waker.close()

    def submit(self, task: Task) -> None:
        worker = min(self._workers, key=lambda worker: len(worker.tasks))
        worker.tasks.append(task)
        worker.outbox.post(TASK_HEADER.pack(task.id, task.size) + task.payload)
        if worker.outbox.pending:
            self._watch_outbox(worker)

    def _watch_outbox(self, worker: _Worker) -> None:
        if worker.outbox.fd not in self._selector.get_map():
            self._selector.register(worker.outbox.fd, selectors.EVENT_WRITE, worker)

    def wait(self, timeout: float | None) -> Sequence[Event]:
        ready = self._selector.select(HEARTBEAT if timeout is None else min(timeout, HEARTBEAT))
        events: list[Event] = []
        dead = [] if ready else [worker for worker in self._workers if not worker.alive()]
        for key, mask in ready:
            worker: _Worker | None = key.data
            if worker is None:
                self._waker.clear()
            elif mask & selectors.EVENT_WRITE:
                self._write(worker)
            elif key.fd == worker.inbox.fd:
                self._read(worker, events)
            else:
                dead.append(worker)
        for worker in dead:
            self._bury(worker, events)
        return events

    def _write(self, worker: _Worker) -> None:
        worker.outbox.flush()
        if not worker.outbox.pending:
            self._selector.unregister(worker.outbox.fd)

    def _read(self, worker: _Worker, events: list[Event]) -> None:
        for message in worker.inbox.messages():
            self._take(worker, message, events)
        if worker.inbox.ended:
            self._selector.unregister(worker.inbox.fd)

    def _take(self, worker: _Worker, message: bytes, events: list[Event]) -> None:
        kind, body = message[:1], message[1:]
        if kind == READY:
            self._stillborn = 0
            worker.settle()
        elif kind == SETUP_FAILED:
            events.append(SetupFailed(_setup_error(body)))
        elif kind in (PARTIAL, FINAL):
            task = worker.tasks[0].id
            if kind == FINAL:
                worker.tasks.popleft()
            events.append(Replied(task, body, kind == FINAL))

    def _bury(self, worker: _Worker, events: list[Event]) -> None:
        self._read_rest(worker, events)
        self._forget(worker)
        failed_setup = any(isinstance(event, SetupFailed) for event in events)
        event = worker.death_certificate()
        worker.close()
        if event.running is not None or event.queued:
            events.append(event)
        if self._halted or failed_setup:
            self._wanted = max(self._wanted - 1, 0)
            return
        self._stillborn += not worker.settled
        if self._stillborn >= STILLBORN_LIMIT:
            events.append(SetupFailed(event.error))
        else:
            self._start_worker()

    def _read_rest(self, worker: _Worker, events: list[Event]) -> None:
        if not worker.inbox.ended:
            for message in worker.inbox.messages():
                self._take(worker, message, events)

    def _forget(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        for fd in (worker.inbox.fd, worker.outbox.fd, worker.sentinel):
            if fd in self._selector.get_map():
                self._selector.unregister(fd)

    def wake(self) -> None:
        if self in _started:
            self._waker.wake()

    def halt(self) -> None:
        self._halted = True
        for worker in self._workers:
            worker.state.halt()

    def kill(self) -> None:
        self._halted = True
        for worker in self._workers:
            worker.kill()

    def stop(self) -> None:
        """Let idle workers leave by themselves, and kill those that still have something to do."""
        if self not in _started:
            return
        self._halted = True
        for worker in self._workers:
            if worker.tasks:
                worker.kill()
            else:
                worker.outbox.post(STOP)
        deadline = time.monotonic() + PATIENCE
        for worker in self._workers:
            worker.join(deadline)
            worker.close()
        self._workers = []
        _started.discard(self)
        self._selector.close()
        self._waker.close()


class _Worker:
    """The parent's side of one worker process."""

    def __init__(self, longest: int) -> None:
        self.tasks: deque[Task] = deque()
        self.settled = False
        self._process: Any = None
        self.state, self._state_path = StateBlock.create(longest)
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

    def start(
        self, method: str, parcel: Any, before_fork: Callable[[], None], close_copies: Callable[[], None]
    ) -> None:
        line = Line(*self._theirs, self._state_path)
        context: Any = multiprocessing.get_context(method)
        arguments: tuple[Any, ...] = (parcel, line)
        if method == "fork":
            before_fork()
            arguments = (parcel, line, self._in_child(close_copies))
        # Daemonic, so that an interpreter that exits with a pool open ends its workers instead of waiting for them.
        self._process = context.Process(target=main, args=arguments, name="poolsave-worker", daemon=True)
        with _forking() if method == "fork" else _nothing():
            self._process.start()
        self.sentinel: int = self._process.sentinel
        for end in self._theirs:
            end.close()

    def _in_child(self, close_copies: Callable[[], None]) -> Callable[[], None]:
        def close() -> None:
            close_copies()
            self._our_tasks.close()
            self._our_replies.close()

        return close

    def settle(self) -> None:
        """The worker is set up, and has opened everything that it finds by name."""
        self.settled = True
        self._remove_state_file()

    def alive(self) -> bool:
        return bool(self._process.is_alive())

    def death_certificate(self) -> Died:
        """Say what the worker was at. Its last words were read before."""
        self._process.join()
        error = WorkerDied(self._process.exitcode, _signal_name(self._process.exitcode))
        if self.tasks and self.state.task == self.tasks[0].id:
            running = self.tasks.popleft()
            return Died(error, running.id, self.state.marks(running.size), tuple(task.id for task in self.tasks))
        return Died(error, None, b"", tuple(task.id for task in self.tasks))

    def kill(self) -> None:
        self._process.kill()

    def join(self, deadline: float) -> None:
        """Wait until the process has ended, and help it along after the deadline."""
        self._process.join(max(0.0, deadline - time.monotonic()))
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def close_pipes(self) -> None:
        for end in self._open:
            if not end.closed:
                end.close()

    def close(self) -> None:
        """Give back everything of a worker that has ended or was never started."""
        self.close_pipes()
        self.state.close()
        self._remove_state_file()
        if self._process is not None:
            self._process.close()

    def _remove_state_file(self) -> None:
        if self._state_path:
            os.unlink(self._state_path)
            self._state_path = ""


class Waker:
    """Lets another thread, or a signal, end a `wait`."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self._writer, False)

    def wake(self) -> None:
        try:
            os.write(self._writer, b"!")
        except BlockingIOError:  # full: it will wake up anyway
            return

    def clear(self) -> None:
        os.read(self.reader, 4096)

    def close(self) -> None:
        if self._writer >= 0:
            os.close(self.reader)
            os.close(self._writer)
            self.reader = self._writer = -1


@contextmanager
def _forking() -> Iterator[None]:
    """Fork with SIGINT and SIGTERM held back, so that the child has no time in which the parent's handlers run."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        with warnings.catch_warnings():
            if threading.current_thread() is not threading.main_thread():
                # Only the driver of a block forks beside another thread, to replace a worker that has died.
                warnings.filterwarnings("ignore", r".*multi-threaded", DeprecationWarning)
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _setup_error(body: bytes) -> BaseException:
    return unpack_error(pickle.loads(body))


def _signal_name(exitcode: int | None) -> str | None:
    if exitcode is None or exitcode >= 0:
        return None
    try:
        return signal.Signals(-exitcode).name
    except ValueError:
        return f"signal {-exitcode}"
