"""What runs in the workers of a Dask cluster. `Cluster` sends these calls.

Several tasks of a run may go as one task of Dask: a bundle. A scheduler silently runs it again when its worker or its
result is lost. So each bundle is meant for one process: the caller registers a `RunState` there first, and that starts
each bundle once. In any other process, and at a second time, a bundle does nothing and says so.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from ..._environment.versions import Versions
from ..._pickling.exceptions import ExceptionRecord, record_exception
from ..protocol import Job, Session
from ..serial import LocalMarks


class TaskAnswer(NamedTuple):
    """The answer of a worker to a task."""

    begun: bool
    replies: Sequence[Any] = ()
    error: ExceptionRecord | None = None
    """Why the task was not started. If it was started: an error in poolsave itself."""


class BundleAnswer(NamedTuple):
    """The answer of a worker to a bundle that is meant for it."""

    answers: Sequence[TaskAnswer] = ()
    """One per task, in order."""
    seconds: float = 0.0
    """How long the worker was at it."""
    repeated: bool = False
    """The bundle was started before, and its result is lost."""


class RunState:
    """The state of one run in one worker process."""

    def __init__(self, pickled_job: bytes) -> None:
        self.pickled_job = pickled_job
        self.marks = LocalMarks()
        self._lock = threading.Lock()
        self._begun: set[int] = set()
        self._oldest = 0

    def begin(self, bundle: int, oldest: int) -> bool:
        """Note that a bundle starts. Returns False if it was started before.

        Bundles before `oldest` have ended and are dropped from memory."""
        with self._lock:
            if bundle < self._oldest or bundle in self._begun:
                return False
            self._oldest = max(self._oldest, oldest)
            self._begun = {number for number in self._begun if number >= self._oldest} | {bundle}
            return True


_runs: dict[str, RunState] = {}
_setup_lock = threading.Lock()
"""Held while a thread sets up: Django is set up once per process, and a Dask worker has several threads."""


def register_run(token: str, pickled_job: bytes, caller: Versions) -> Versions:
    """Register a run if this worker runs the caller's code. Unpickles nothing of the user's."""
    own = Versions.here()
    if own == caller:
        _runs[token] = RunState(pickled_job)
    return own


def halt(token: str) -> None:
    """Start no further object in this run."""
    if token in _runs:
        _runs[token].marks.halted = True


def forget_run(token: str) -> None:
    """Remove the state of this run."""
    _runs.pop(token, None)


def try_setup(token: str) -> ExceptionRecord | None:
    """Set a worker up and close it, so that an error is known before any task is sent."""
    run = _runs.get(token)
    if run is None:
        return None
    try:
        _open(run).close()
    except BaseException as error:  # reported to the caller, which raises it
        return record_exception(error)
    return None


def run_bundle(token: str, bundle: int, oldest: int, payloads: Sequence[bytes]) -> BundleAnswer | None:
    """Run tasks one after the other, unless they were started before; None if they are not meant for this process."""
    run = _runs.get(token)
    if run is None:
        return None
    if not run.begin(bundle, oldest):
        return BundleAnswer(repeated=True)
    began = time.perf_counter()
    try:
        session = _open(run)
    except BaseException as error:  # reported to the caller, which raises it
        return BundleAnswer([TaskAnswer(begun=False, error=record_exception(error))] * len(payloads))
    answers: list[TaskAnswer] = []
    try:
        with closing(session):
            answers.extend(_run_task(session, payload, run.marks) for payload in payloads)
    except BaseException as error:  # if this were raised, the caller could not tell which tasks have started
        open_or_last = max(1, len(payloads) - len(answers))
        answers[len(payloads) - open_or_last :] = [TaskAnswer(begun=True, error=record_exception(error))] * open_or_last
    return BundleAnswer(answers, time.perf_counter() - began)


def _run_task(session: Session, payload: bytes, marks: LocalMarks) -> TaskAnswer:
    replies: list[Any] = []
    try:
        session.run(payload, marks, lambda body, final: replies.append(body))
    except BaseException as error:  # if this were raised, the caller could not tell whether the task has started
        return TaskAnswer(begun=True, error=record_exception(error))
    return TaskAnswer(begun=True, replies=replies)


def _open(run: RunState) -> Session:
    with _setup_lock:
        job: Job = pickle.loads(run.pickled_job)
        return job.open(alone=False)


class RemoteCall:
    """A call that is made when it is unpickled.

    The scheduler unpickles the function of a task. If that were not `pickle.loads`, the scheduler would need poolsave
    and Django.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call
