"""Tasks in threads of this process: for work that waits on the network or sleeps rather than computes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from contextvars import Context

from .event_queue import EventQueueExecutor
from .protocol import Broken, Event, Job, Ready, Replied, Session, SetupFailed, Task
from .serial import LocalMarks

__all__ = ["ThreadExecutor"]


class ThreadExecutor(EventQueueExecutor):
    """Runs tasks in threads that open, and at the end close, database connections of their own."""

    shares_memory = True

    def __init__(self, **_unused: object) -> None:
        self._threads: list[threading.Thread] = []
        self.workers = 0
        self._clear_events()

    @property
    def running(self) -> bool:
        return bool(self._threads)

    def start(self, job: Job, *, workers: int, longest: int) -> None:
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._clear_events()
        self._marks = LocalMarks()
        self._threads = [
            # Daemonic, so that an interpreter that exits with an open pool does not wait for ever. With a new context,
            # since in free-threaded Python a thread inherits the context of its caller.
            threading.Thread(target=Context().run, args=(self._run_tasks, job), name=f"poolsave-{number}", daemon=True)
            for number in range(workers)
        ]
        self.workers = workers
        for thread in self._threads:
            thread.start()

    def submit(self, task: Task) -> None:
        self._tasks.put(task)

    def wait(self, timeout: float | None) -> Sequence[Event]:
        events = self._take_events(timeout)
        self.workers -= sum(isinstance(event, SetupFailed) for event in events)
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

    def _run_tasks(self, job: Job) -> None:
        started = time.perf_counter()
        try:
            session = job.open()
        except BaseException as error:  # reported to the caller, which raises it
            self._emit(SetupFailed(error))
            return
        self._emit(Ready(threading.current_thread().name, time.perf_counter() - started))
        try:
            while (task := self._tasks.get()) is not None:
                self._run(session, task)
        finally:
            session.close()

    def _run(self, session: Session, task: Task) -> None:
        try:
            session.run(task.payload, self._marks, lambda body, final: self._emit(Replied(task.id, body, final)))
        except BaseException as error:  # an error in poolsave itself must end the run, not hang it
            self._emit(Broken(task.id, error, begun=True))
