"""What runs in the workers of a Dask cluster.

A scheduler runs a task again, without a word, when the worker that had it is gone, or when its result is. So a task is
meant for one process, which knows it by a desk that the caller has set up there for this run, and a desk begins each
task once. In any other process, and for the second time, a task does nothing and says so.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from ..._environment.versions import Versions
from ..._pickling.exceptions import ExceptionRecord, record_exception
from ..protocol import Job, Session
from ..serial import LocalMarks


class TaskAnswer(NamedTuple):
    """What a worker says of a task that is meant for it."""

    begun: bool
    replies: Sequence[Any] = ()
    error: ExceptionRecord | None = None
    """Why it was not begun, or a fault of poolsave's own if it was."""
    repeated: bool = False
    """It was begun before, and whatever that came to is not known any more."""


class RunState:
    """What one worker process knows of one run."""

    def __init__(self, parcel: bytes) -> None:
        self.parcel = parcel
        self.marks = LocalMarks()
        self._lock = threading.Lock()
        self._begun: set[int] = set()
        self._oldest = 0

    def begin(self, task: int, oldest: int) -> bool:
        """Whether the task may begin, which it may once. Those before `oldest` have ended and need not be kept."""
        with self._lock:
            if task < self._oldest or task in self._begun:
                return False
            self._oldest = max(self._oldest, oldest)
            self._begun = {number for number in self._begun if number >= self._oldest} | {task}
            return True


_runs: dict[str, RunState] = {}
_opening = threading.Lock()
"""Django comes up once per process, and a Dask worker has several threads."""


def register_run(token: str, parcel: bytes, callers: Versions) -> Versions:
    """Set a desk up if this worker runs the caller's code. Restores nothing of the user's."""
    mine = Versions.here()
    if mine == callers:
        _runs[token] = RunState(parcel)
    return mine


def halt(token: str) -> None:
    """Begin no further object in this run."""
    if token in _runs:
        _runs[token].marks.halted = True


def forget_run(token: str) -> None:
    """Keep nothing of this run."""
    _runs.pop(token, None)


def try_setup(token: str) -> ExceptionRecord | None:
    """Try to set a worker up, so that whatever is wrong with that is known before any task is sent."""
    desk = _runs.get(token)
    if desk is None:
        return None
    try:
        _open(desk).close()
    except BaseException as error:  # told to the caller, who raises it
        return record_exception(error)
    return None


def run_task(token: str, task: int, oldest: int, payload: bytes) -> TaskAnswer | None:
    """Run a task, unless it was begun before; None if it is not meant for this process."""
    desk = _runs.get(token)
    if desk is None:
        return None
    if not desk.begin(task, oldest):
        return TaskAnswer(begun=True, repeated=True)
    try:
        session = _open(desk)
    except BaseException as error:  # told to the caller, who raises it
        return TaskAnswer(begun=False, error=record_exception(error))
    replies: list[Any] = []
    try:
        with closing(session):
            session.run(payload, desk.marks, lambda body, final: replies.append(body))
    except BaseException as error:  # if this were raised, nobody could tell whether the task has begun
        return TaskAnswer(begun=True, error=record_exception(error))
    return TaskAnswer(begun=True, replies=replies)


def _open(desk: RunState) -> Session:
    with _opening:
        job: Job = pickle.loads(desk.parcel)
        return job.open(alone=False)


class RemoteCall:
    """A call that is made where it is restored.

    The scheduler restores the function of a task, and so would have to have poolsave and Django, if that were anything
    but `pickle.loads`.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call
