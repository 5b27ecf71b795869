"""Any PEP 3148 executor: the standard library's, loky's, mpi4py's, or one of your own."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import pickle
import queue
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any

from .._db.redacted import dumps
from .._pickling.exceptions import ExceptionRecord, record_exception, restore_exception
from .green_threads import check_start_method
from .protocol import Broken, Event, Job, Replied, SetupFailed, Task
from .serial import LocalMarks

__all__ = ["FuturesExecutor", "ProcessPoolExecutor", "ThreadFuturesExecutor"]


class FuturesExecutor:
    """Runs each task as one call of `executor.submit`, and never shuts the executor down, since it is yours.

    Workers are set up once per process and thread, give their connections back after every task (nobody tells them
    when the last one is over), and are warm again in the next run.
    """

    shares_memory = False
    inline = False
    enforces_timeout = False
    blames_exactly = False
    can_kill = False
    at_most_once = True  # as far as the executor itself runs no future twice
    _alone = False
    """Whether its processes do nothing else."""

    def __init__(self, executor: concurrent.futures.Executor) -> None:
        self._executor = executor
        self.workers = _workers_of(executor)
        self.on_event: Callable[[], None] | None = None
        self._start_over()

    def _start_over(self) -> None:
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._flag = LocalMarks()
        self._futures: dict[int, concurrent.futures.Future[Any]] = {}

    def start(self, job: Job, *, workers: int, longest: int) -> None:
        self._start_over()
        if not self.shares_memory:
            job.before_fork()  # it may start its processes only now
        # Once, and here: a function that cannot be pickled is refused before anything runs.
        self._parcel: Job | bytes = job if self.shares_memory else dumps(job)
        self.workers = min(workers, self.workers)

    def submit(self, task: Task) -> None:
        marks = self._flag if self.shares_memory else None
        try:
            future = self._executor.submit(run_task, self._parcel, task.payload, marks, self._alone)
        except BaseException as error:  # shut down or broken: this task certainly never started
            self._tell(Broken(task.id, error, begun=False))
            return
        self._futures[task.id] = future
        future.add_done_callback(lambda future: self._done(task.id, future))

    def _done(self, task: int, future: concurrent.futures.Future[Any]) -> None:
        if future.cancelled():
            self._tell(Broken(task, concurrent.futures.CancelledError(), begun=False))
        elif (error := future.exception()) is not None:
            self._tell(Broken(task, error, begun=True))
        else:
            self._answered(task, *future.result())

    def _answered(self, task: int, refusal: ExceptionRecord | None, replies: list[Any]) -> None:
        if refusal is not None:
            error = restore_exception(refusal)
            self._tell(SetupFailed(error))
            self._tell(Broken(task, error, begun=False))
        else:
            for number, body in enumerate(replies, 1):
                self._tell(Replied(task, body, number == len(replies)))

    def _tell(self, event: Event) -> None:
        self._events.put(event)
        if self.on_event is not None:
            self.on_event()

    def wait(self, timeout: float | None) -> Sequence[Event]:
        events: list[Event] = []
        try:
            found = self._events.get(timeout=timeout)
            while True:
                if found is not None:
                    events.append(found)
                    self._forget(found)
                found = self._events.get_nowait()
        except queue.Empty:
            return events

    def _forget(self, event: Event) -> None:
        if isinstance(event, Broken) or (isinstance(event, Replied) and event.final):
            self._futures.pop(event.task, None)

    def wake(self) -> None:
        self._events.put(None)

    def halt(self) -> None:
        self._flag.halted = True
        for future in list(self._futures.values()):
            future.cancel()

    def kill(self) -> None:
        """A future that runs cannot be ended from outside: it is finished."""
        self.halt()

    def stop(self) -> None:
        """Take back what has not begun, and wait for the rest: a future that runs cannot be stopped."""
        self.halt()
        concurrent.futures.wait(list(self._futures.values()))
        self._futures.clear()


class ThreadFuturesExecutor(FuturesExecutor):
    """The same for a `ThreadPoolExecutor`, whose workers see the caller's objects themselves."""

    shares_memory = True


class ProcessPoolExecutor(FuturesExecutor):
    """The standard library's process pool, made for one run and shut down after it.

    This is what `executor="process"` means on Windows, where the pipes of `ProcessExecutor` do not exist.
    """

    _alone = True

    def __init__(self, *, start_method: str | None = None) -> None:
        check_start_method(start_method)
        self._start_method = start_method or "spawn"
        self.on_event = None
        self._start_over()

    workers = 0

    def start(self, job: Job, *, workers: int, longest: int) -> None:
        context: Any = multiprocessing.get_context(self._start_method)
        self._executor = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
        self.workers = workers
        super().start(job, workers=workers, longest=longest)

    def stop(self) -> None:
        super().stop()
        self._executor.shutdown()


def run_task(
    parcel: Job | bytes, payload: Any, marks: LocalMarks | None, alone: bool
) -> tuple[ExceptionRecord | None, list[Any]]:
    """Run one task wherever the foreign executor put it; every reply is held until the end."""
    if marks is not None:
        return _run_task(parcel, payload, marks, alone)
    # A process may have been forked by the caller, whose context is not for a worker.
    return Context().run(_run_task, parcel, payload, LocalMarks(), alone)


def _run_task(
    parcel: Job | bytes, payload: Any, marks: LocalMarks, alone: bool
) -> tuple[ExceptionRecord | None, list[Any]]:
    replies: list[Any] = []
    try:
        job: Job = pickle.loads(parcel) if isinstance(parcel, bytes) else parcel
        session = job.open(alone=alone)
    except BaseException as error:  # told to the caller, who raises it; the task has not begun
        return record_exception(error), replies
    try:
        session.run(payload, marks, lambda body, final: replies.append(body))
    finally:
        session.close()
    return None, replies


def _workers_of(executor: concurrent.futures.Executor) -> int:
    # ThreadPoolExecutor, ProcessPoolExecutor, loky and MPIPoolExecutor all keep the number under this name.
    found = getattr(executor, "_max_workers", None)
    return found if isinstance(found, int) and found > 0 else os.cpu_count() or 1
