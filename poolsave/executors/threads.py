"""Tasks in threads of this process: for work that waits on the network or sleeps rather than computes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from contextvars import Context
from itertools import count
from typing import NamedTuple

from .event_queue import EventQueueExecutor
from .protocol import Broken, Event, Job, NotAdded, Ready, Replied, Retired, Session, SetupFailed, Task
from .serial import LocalMarks

__all__ = ["ThreadExecutor"]


class _Joined(NamedTuple):
    """What became of a thread that was added."""

    event: Ready | NotAdded


class ThreadExecutor(EventQueueExecutor):
    """Runs tasks in threads that open, and at the end close, database connections of their own."""

    shares_memory = True

    def __init__(self, **_unused: object) -> None:
        self._threads: list[threading.Thread] = []
        self.workers = 0
        self.joining = 0
        self._clear_events()

    @property
    def running(self) -> bool:
        return bool(self._threads)

    def start(self, job: Job, *, workers: int, longest: int) -> None:
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._clear_events()
        self._marks = LocalMarks()
        self._job = job
        self._numbers = count()
        self._threads = [self._make_thread(added=False) for _ in range(workers)]
        self.workers = workers
        self.joining = 0
        for thread in self._threads:
            thread.start()

    def _make_thread(self, *, added: bool) -> threading.Thread:
        # Daemonic, so that an interpreter that exits with an open pool does not wait for ever. With a new context,
        # since in free-threaded Python a thread inherits the context of its caller.
        name = f"poolsave-{next(self._numbers)}"
        return threading.Thread(target=Context().run, args=(self._run_tasks, self._job, added), name=name, daemon=True)

    def resize(self, workers: int) -> None:
        """Threads take tasks from one queue, so it is any of them that takes the sign to end."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        for _ in range(workers - self.workers - self.joining):
            thread = self._make_thread(added=True)
            try:
                thread.start()
            except RuntimeError as error:  # the system has no more threads
                self._emit(NotAdded(error))
                return
            self._threads.append(thread)
            self.joining += 1
        for _ in range(self.workers - max(1, workers)):
            self._tasks.put(None)
            self.workers -= 1

    def submit(self, task: Task) -> None:
        self._tasks.put(task)

    def wait(self, timeout: float | None) -> Sequence[Event]:
        events = []
        for event in self._take_events(timeout):
            if isinstance(event, _Joined):
                self.joining -= 1
                self.workers += isinstance(event.event, Ready)
                events.append(event.event)
            else:
                self.workers -= isinstance(event, SetupFailed)
                events.append(event)
        return events

    def halt(self) -> None:
        if self._threads:
            self._marks.halted = True

    def stop(self) -> None:
        """End the threads. Their current objects are finished first: a running thread cannot be ended from outside."""
        self.halt()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            if thread.ident is not None:  # None if `start` was interrupted
                thread.join()
        self._threads = []

    def _run_tasks(self, job: Job, added: bool) -> None:
        started, name = time.perf_counter(), threading.current_thread().name
        try:
            session = job.open(added=True) if added else job.open()
        except BaseException as error:  # reported to the caller, which raises it, or goes on without this thread
            self._emit(_Joined(NotAdded(error)) if added else SetupFailed(error))
            return
        ready = Ready(name, time.perf_counter() - started)
        self._emit(_Joined(ready) if added else ready)
        try:
            while (task := self._tasks.get()) is not None:
                self._run(session, task)
        finally:
            session.close()
        if not self._marks.halted:
            self._emit(Retired(name))

    def _run(self, session: Session, task: Task) -> None:
        try:
            session.run(task.payload, self._marks, lambda body, final: self._emit(Replied(task.id, body, final)))
        except BaseException as error:  # an error in poolsave itself must end the run, not hang it
            self._emit(Broken(task.id, error, begun=True))
