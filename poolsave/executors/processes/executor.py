"""Worker processes with one private pair of pipes each, driven by the caller's thread alone.

There is no shared queue, so there is no lock that a killed worker could leave held; and there is no thread in the
parent, so that it can fork, also to replace a worker that has died.
"""

from __future__ import annotations

import atexit
import os
import pickle
import selectors
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from ..._environment.warnings import warn
from ..._pickling.exceptions import restore_exception
from ..._runtime.redacted import dumps
from ...errors import InvalidOperation, InvalidOption
from ..protocol import Died, Event, Job, NotAdded, Ready, Replied, Retired, SetupFailed, Task
from .pipes import Waker, fill_standard
from .start_methods import (
    check_script_can_be_imported,
    check_start_method,
    choose_start_method,
    ensure_forkserver,
    is_alone,
    why_not_preloaded,
)
from .worker_handle import WorkerHandle
from .worker_main import FINAL, PARTIAL, READY, SETUP_FAILED, STOP, TASK_HEADER

HEARTBEAT = 0.5
"""Polling interval in seconds for workers whose exit no descriptor reports: a child of theirs keeps the pipes open."""
HEARTBEAT_OF_TIMEOUTS = 0.1
"""Polling interval in seconds for the clocks of objects with a time-out."""
STOP_TIMEOUT = 5.0
"""Seconds that a worker has to close its connections and exit. After them it is killed."""
MAX_FAILED_STARTS = 3
"""Number of workers that may die in a row before they are set up. Then the run is given up."""


_started: WeakSet[ProcessExecutor] = WeakSet()


@atexit.register
def _stop_replacing_workers() -> None:
    # Why: multiprocessing ends all workers at exit and then waits for those that are left. The driver thread of an open
    # block sees its workers end. It would start others in between, and the exit would wait for them for ever.
    # This handler runs first: multiprocessing, imported above, has registered its own before.
    for executor in list(_started):
        executor.halt()


def _discard_inherited() -> None:
    for executor in list(_started):
        executor.let_go()
    _started.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_discard_inherited)


class ProcessExecutor:
    """Runs tasks in processes of its own and knows exactly which object each of them was running when it died."""

    shares_memory = False
    inline = False
    enforces_timeout = True
    blames_exactly = True
    can_kill = True
    at_most_once = True

    def __init__(self, *, start_method: str | None = None) -> None:
        check_start_method(start_method)
        self._start_method = start_method
        self._workers: list[WorkerHandle] = []
        self._wanted = 0
        self._failed_starts = 0
        self._halted = False
        self._not_added: list[NotAdded] = []

    @property
    def running(self) -> bool:
        return self in _started

    @property
    def workers(self) -> int:
        return self._wanted

    def method_for(self, job: Job) -> str:
        """The start method that would be used now."""
        # The job looks at each open SQLite connection for that, so it is asked only where the answer counts.
        fork_is_possible = self._start_method is not None or job.fork_is_possible
        return choose_start_method(self._start_method, fork_is_possible=fork_is_possible)

    def start(self, job: Job, *, workers: int, longest: int) -> None:
        self._method = self.method_for(job)
        # A fork inherits the job itself. Bytes for other methods are made once, by the first worker that needs them.
        self._jobs_by_method: dict[str, Any] = {"fork": job}
        self._job = job
        self._longest = longest
        self._halted = False
        self._failed_starts = 0
        self._not_added = []
        fill_standard()
        self._prepare(self._method)
        self._waker = Waker()
        try:
            self._selector = selectors.DefaultSelector()
        except BaseException:  # no descriptor is left
            self._waker.close()
            raise
        # Before the first worker: if one cannot be started, `stop` has to find and end the others.
        _started.add(self)
        self._selector.register(self._waker.reader, selectors.EVENT_READ, None)
        self._wanted = workers
        for _ in range(workers):
            self._start_worker()

    def _prepare(self, method: str) -> None:
        if method == "fork":
            self._job.before_fork()
            return
        check_script_can_be_imported()
        if method not in self._jobs_by_method:
            self._jobs_by_method[method] = dumps(self._job)
        if method == "forkserver" and (reason := ensure_forkserver(self._job.preload)):
            warn(
                f"Django cannot be set up once for all workers, in Python's fork server: {reason}; each worker sets it "
                "up for itself, which takes longer"
            )

    def _start_worker(self, *, joining: bool = False) -> None:
        worker = WorkerHandle(self._longest)
        worker.joining = joining
        try:
            worker.start(self._method, self._jobs_by_method[self._method])
        except BaseException:
            worker.abort()
            raise
        self._workers.append(worker)
        self._selector.register(worker.inbox.fd, selectors.EVENT_READ, worker)
        self._selector.register(worker.sentinel, selectors.EVENT_READ, worker)

    def _replace_worker(self) -> None:
        """Start another worker, from the fork server if the job can be pickled.

        By now the caller may have threads with locks, and open SQLite files."""
        self._job.before_start()
        if self._method == "fork" and not (is_alone() and self._job.fork_changes_nothing):
            with suppress(InvalidOperation, InvalidOption):  # a closure cannot be pickled: only a fork is left
                method = choose_start_method("forkserver")
                self._prepare(method)
                self._method = method
        if self._method == "fork":
            self._prepare("fork")
        self._start_worker()

    @property
    def joining(self) -> int:
        return sum(worker.joining for worker in self._workers)

    def resize(self, workers: int) -> None:
        if self._halted:
            return
        more = workers - self._wanted - self.joining
        if more > 0:
            self._add_workers(more)
        # One stays in any case: tasks that are at work elsewhere may come back.
        for _ in range(min(-more, self._wanted + self.joining - 1)):
            self._retire_worker()

    def _add_workers(self, count: int) -> None:
        """Start workers by the method of the others. Without a fork server, that is a fork, if it is still safe."""
        if self._method == "fork" and not (is_alone() and self._job.fork_changes_nothing):
            return
        try:
            self._job.before_start()
            self._prepare(self._method)
            for _ in range(count):
                self._start_worker(joining=True)
        except Exception as error:  # a hook's, or no process or descriptor is left: the run goes on with what it has
            self._not_added.append(NotAdded(error))

    def _retire_worker(self) -> None:
        """Let the worker with the fewest tasks end after them. One that is being set up goes first."""
        workers = [worker for worker in self._workers if not worker.retiring]
        worker = min(workers, key=lambda worker: (not worker.joining, len(worker.tasks)))
        self._wanted -= not worker.joining
        worker.joining, worker.retiring = False, True
        # A pipe keeps the order: the worker reads this behind its tasks.
        self._post(worker, STOP)

    def let_go(self) -> None:
        """In a forked child: close the inherited descriptors and forget the workers.

        With the descriptors open, the workers would not notice the end of their parent. They are not the child's to
        end."""
        for worker in self._workers:
            worker.let_go()
        self._workers = []
        self._selector.close()
        self._waker.close()

    def submit(self, task: Task) -> None:
        # Not to one that is being set up: if that fails, the run goes on without it, and so it must have no task.
        workers = (worker for worker in self._workers if not (worker.joining or worker.retiring))
        worker = min(workers, key=lambda worker: len(worker.tasks))
        worker.tasks.append(task)
        self._post(worker, TASK_HEADER.pack(task.id, task.size) + task.payload)

    def _post(self, worker: WorkerHandle, message: bytes) -> None:
        worker.outbox.post(message)
        if worker.outbox.pending and worker.outbox.fd not in self._selector.get_map():
            self._selector.register(worker.outbox.fd, selectors.EVENT_WRITE, worker)

    def wait(self, timeout: float | None) -> Sequence[Event]:
        events: list[Event] = [*self._not_added]
        self._not_added.clear()
        ready = self._selector.select(0 if events else self._patience(timeout))
        if self._job.timeout is not None:
            for worker in self._workers:
                worker.check_time(self._job.timeout)
        # Looked for only while nothing else comes: it is for workers whose exit no descriptor reports (`HEARTBEAT`).
        dead = [] if ready else [worker for worker in self._workers if not worker.is_alive()]
        for key, mask in ready:
            if key.data is None:
                self._waker.clear()
            elif mask & selectors.EVENT_WRITE:
                self._write(key.data)
            elif key.fd == key.data.inbox.fd:
                self._read(key.data, events)
            else:
                dead.append(key.data)
        # After all messages of this round, since a worker's own may have come just before its end.
        for worker in dead:
            self._on_exit(worker, events)
        return events

    def _patience(self, timeout: float | None) -> float:
        heartbeat = HEARTBEAT if self._job.timeout is None else HEARTBEAT_OF_TIMEOUTS
        return heartbeat if timeout is None else min(timeout, heartbeat)

    def _write(self, worker: WorkerHandle) -> None:
        worker.outbox.flush()
        if not worker.outbox.pending:
            self._selector.unregister(worker.outbox.fd)

    def _read(self, worker: WorkerHandle, events: list[Event]) -> None:
        for message in worker.inbox.messages():
            self._handle(worker, message, events)
        if worker.inbox.ended:
            self._selector.unregister(worker.inbox.fd)

    def _handle(self, worker: WorkerHandle, message: bytes, events: list[Event]) -> None:
        kind, body = message[:1], message[1:]
        if kind == READY:
            self._failed_starts = 0
            worker.is_set_up = True
            self._wanted += worker.joining
            worker.joining = False
            events.append(Ready(worker.pid, time.perf_counter() - worker.started_at))
        elif kind == SETUP_FAILED:
            error = restore_exception(pickle.loads(body))
            self._drop_joining(worker, error, events)
            if not worker.retiring:
                events.append(SetupFailed(error))
        elif kind in (PARTIAL, FINAL):
            # A worker runs its tasks in the order in which they were sent.
            task = worker.tasks[0].id
            if kind == FINAL:
                worker.tasks.popleft()
            events.append(Replied(task, body, kind == FINAL))

    def _on_exit(self, worker: WorkerHandle, events: list[Event]) -> None:
        worker.end()
        # What it had sent by then is still in the pipe. It is read before the marks: an answered task is no longer at
        # risk.
        if not worker.inbox.ended:
            self._read(worker, events)
        # Before they are closed: the next worker may get descriptors of the same numbers, which the selector must not
        # know.
        self._unregister(worker)
        failed_setup = any(isinstance(event, SetupFailed) for event in events)
        event = worker.exit_event()
        worker.close()
        if event.running is not None or event.queued:
            events.append(event)
        self._drop_joining(worker, event.error, events)
        if worker.retiring:
            events.append(Retired(worker.pid))
        else:
            self._on_unexpected_exit(worker, event, events, failed_setup=failed_setup)

    def _on_unexpected_exit(
        self, worker: WorkerHandle, event: Died, events: list[Event], *, failed_setup: bool
    ) -> None:
        if self._halted or failed_setup:
            self._wanted = max(self._wanted - 1, 0)
            return
        self._failed_starts += not worker.is_set_up
        if self._failed_starts >= MAX_FAILED_STARTS:
            if self._method == "forkserver" and (reason := why_not_preloaded()):
                details = f"(Python's fork server could not keep Django set up: {reason})"
                event.error.details = f"{event.error.details}\n{details}".lstrip()
            events.append(SetupFailed(event.error))
        else:
            try:
                self._replace_worker()
            except BaseException as error:  # a hook's, or no memory is left for a process; the caller raises it
                events.append(SetupFailed(error))
                self._wanted -= 1

    @staticmethod
    def _drop_joining(worker: WorkerHandle, error: BaseException, events: list[Event]) -> None:
        if worker.joining:
            events.append(NotAdded(error))
            worker.joining, worker.retiring = False, True

    def _unregister(self, worker: WorkerHandle) -> None:
        self._workers.remove(worker)
        for fd in (worker.inbox.fd, worker.outbox.fd, worker.sentinel):
            if fd in self._selector.get_map():
                self._selector.unregister(fd)

    def fileno(self) -> int:
        """The descriptor that is readable when `wait` has something to do; -1 if the selector has none."""
        fd: int = getattr(self._selector, "fileno", lambda: -1)()  # epoll and kqueue have one
        return fd

    def wake(self) -> None:
        if self in _started:
            self._waker.wake()

    def halt(self) -> None:
        self._halted = True
        for worker in self._workers:
            worker.marks.halt()

    def kill(self) -> None:
        self._halted = True
        for worker in self._workers:
            worker.kill()

    def stop(self) -> None:
        """Ask idle workers to exit, and kill those that still have tasks."""
        if self not in _started:
            return
        self._halted = True
        for worker in self._workers:
            if worker.tasks or worker.joining:
                worker.kill()
            else:
                worker.outbox.post(STOP)
        self._selector.close()  # before the watched descriptors: gevent's selector aborts the process over a closed one
        deadline = time.monotonic() + STOP_TIMEOUT
        for worker in self._workers:
            worker.join(deadline)
            worker.close()
        self._workers = []
        _started.discard(self)
        self._waker.close()
