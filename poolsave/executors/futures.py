"""The adapter for PEP 3148 executors: the standard library's, loky's, mpi4py's, or your own."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import pickle
from collections.abc import Sequence
from contextvars import Context
from typing import Any

from .._pickling.exceptions import ExceptionRecord, record_exception, restore_exception
from .._runtime.redacted import dumps
from .event_queue import EventQueueExecutor
from .processes.start_methods import check_script_can_be_imported, check_start_method, choose_start_method
from .protocol import Broken, Event, Job, Replied, SetupFailed, Task
from .serial import LocalMarks

__all__ = ["FuturesExecutor", "ProcessPoolExecutor", "ThreadFuturesExecutor"]


class FuturesExecutor(EventQueueExecutor):
    """Runs each task as one call of `executor.submit`. It never shuts the executor down: the executor is yours.

    Each task sets up a worker and closes its connections at the end, since no task knows whether it is the last one.
    Django is set up once per process, and stays so for the next run. No task starts twice unless the
    executor runs a future twice.
    """

    _alone = False
    """Whether its processes run nothing else."""

    def __init__(self, executor: concurrent.futures.Executor) -> None:
        self._executor = executor
        self.workers = _max_workers_of(executor)
        self._reset()

    def _reset(self) -> None:
        self._clear_events()
        self._marks = LocalMarks()
        self._futures: dict[int, concurrent.futures.Future[Any]] = {}

    def start(self, job: Job, *, workers: int, longest: int) -> None:
        self._reset()
        if not self.shares_memory:
            job.before_fork()  # the executor may fork its processes only now
        # Pickled once, and here: a function that cannot be pickled is refused before anything runs.
        self._job: Job | bytes = job if self.shares_memory else dumps(job)
        self.workers = min(workers, self.workers)

    def submit(self, task: Task) -> None:
        marks = self._marks if self.shares_memory else None
        try:
            future = self._executor.submit(run_task, self._job, task.payload, marks, self._alone)
        except BaseException as error:  # shut down or broken: this task has certainly not started
            self._emit(Broken(task.id, error, begun=False))
            return
        self._futures[task.id] = future
        future.add_done_callback(lambda future: self._on_done(task.id, future))

    def _on_done(self, task: int, future: concurrent.futures.Future[Any]) -> None:
        if future.cancelled():
            self._emit(Broken(task, concurrent.futures.CancelledError(), begun=False))
        elif (error := future.exception()) is not None:
            self._emit(Broken(task, error, begun=True))
        else:
            self._emit_answer(task, *future.result())

    def _emit_answer(self, task: int, setup_error: ExceptionRecord | None, replies: list[Any]) -> None:
        if setup_error is not None:
            error = restore_exception(setup_error)
            self._emit(SetupFailed(error))
            self._emit(Broken(task, error, begun=False))
        else:
            for number, body in enumerate(replies, 1):
                self._emit(Replied(task, body, number == len(replies)))

    def wait(self, timeout: float | None) -> Sequence[Event]:
        events = self._take_events(timeout)
        for event in events:
            if isinstance(event, Broken) or (isinstance(event, Replied) and event.final):
                self._futures.pop(event.task, None)
        return events

    def halt(self) -> None:
        self._marks.halted = True
        for future in list(self._futures.values()):
            future.cancel()

    def stop(self) -> None:
        """Cancel the futures that have not started, and wait for the others."""
        self.halt()
        concurrent.futures.wait(list(self._futures.values()))
        self._futures.clear()


class ThreadFuturesExecutor(FuturesExecutor):
    """The adapter for a `ThreadPoolExecutor`, whose workers get the caller's objects themselves."""

    shares_memory = True


class ProcessPoolExecutor(FuturesExecutor):
    """The standard library's process pool, made for one run and shut down afterwards.

    This is what `executor="process"` means on Windows, where the pipes of `ProcessExecutor` do not exist.
    """

    _alone = True

    def __init__(self, *, start_method: str | None = None) -> None:
        check_start_method(start_method)
        self._start_method = start_method or "spawn"
        self._reset()

    workers = 0

    def start(self, job: Job, *, workers: int, longest: int) -> None:
        context: Any = multiprocessing.get_context(choose_start_method(self._start_method))
        self._executor = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
        if self._start_method != "fork":
            check_script_can_be_imported()
        self.workers = workers
        super().start(job, workers=workers, longest=longest)

    def stop(self) -> None:
        super().stop()
        self._executor.shutdown()


def run_task(
    job_or_bytes: Job | bytes, payload: Any, marks: LocalMarks | None, alone: bool
) -> tuple[ExceptionRecord | None, list[Any]]:
    """In a worker of the foreign executor: run one task, and return all replies at its end."""
    if marks is not None:
        return _run_task(job_or_bytes, payload, marks, alone)
    # A forked process has the caller's context, which is not for a worker.
    return Context().run(_run_task, job_or_bytes, payload, LocalMarks(), alone)


def _run_task(
    job_or_bytes: Job | bytes, payload: Any, marks: LocalMarks, alone: bool
) -> tuple[ExceptionRecord | None, list[Any]]:
    replies: list[Any] = []
    try:
        job: Job = pickle.loads(job_or_bytes) if isinstance(job_or_bytes, bytes) else job_or_bytes
        session = job.open(alone=alone)
    except BaseException as error:  # reported to the caller, which raises it; the task has not started
        return record_exception(error), replies
    try:
        session.run(payload, marks, lambda body, final: replies.append(body))
    finally:
        session.close()
    return None, replies


def _max_workers_of(executor: concurrent.futures.Executor) -> int:
    # ThreadPoolExecutor, ProcessPoolExecutor, loky and MPIPoolExecutor all use this attribute.
    workers = getattr(executor, "_max_workers", None)
    return workers if isinstance(workers, int) and workers > 0 else os.cpu_count() or 1
