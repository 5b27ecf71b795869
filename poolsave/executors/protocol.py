"""The seam between the engine and whatever runs chunks.

The engine calls, all from one thread: `start`, then `submit` and `wait` in turn, then `stop`. Every task that was
submitted must come back in events: its replies in order with `final=True` on the last, or `Died`, or `Broken`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from ..errors import WorkerDied
from .marks import UNKNOWN

__all__ = [
    "EXECUTOR_METHODS",
    "UNKNOWN",
    "Broken",
    "Died",
    "Event",
    "Executor",
    "Job",
    "Marks",
    "Ready",
    "Replied",
    "Session",
    "SetupFailed",
    "Task",
]


class Task(NamedTuple):
    """One chunk on its way to a worker; `payload` means something to the worker code only."""

    id: int
    payload: Any
    size: int


class Replied(NamedTuple):
    """A worker answered for some or all (`final`) of a task."""

    task: int
    body: Any
    final: bool


class Ready(NamedTuple):
    """A worker is set up, so many seconds after its start was begun. For the statistics; no executor must say so."""

    worker: int | str
    seconds: float


class Died(NamedTuple):
    """A worker process ended. `running` is the task that it had begun, with one mark per object; `queued` are
    tasks that it had been sent and had certainly not begun."""

    error: WorkerDied
    running: int | None
    marks: bytes
    queued: tuple[int, ...]
    note: int = 0
    """What it noted last in that task."""
    overdue: bool = False
    """It was ended because its object took too long."""
    worker: int | None = None
    """Its process id, for the statistics."""


class Broken(NamedTuple):
    """The executor lost a task; `begun` is False only if it is sure that no worker has started it."""

    task: int
    error: BaseException
    begun: bool


class SetupFailed(NamedTuple):
    """A worker could not be set up, so it has run nothing."""

    error: BaseException


Event: TypeAlias = Ready | Replied | Died | Broken | SetupFailed


class Marks(Protocol):
    """Where a worker notes how far it is; a process executor keeps these notes where its death cannot take them."""

    @property
    def halted(self) -> bool:
        """Whether no further object is to be started."""
        ...

    def put(self, offset: int, mark: int) -> None:
        """Note the state of one object of the current task."""

    def stamps(self, size: int, *, begun: int, ended: int) -> memoryview[float] | array[float]:
        """Give zeros, at least as many as the current task has objects, in which the worker notes when each of them
        ended instead of its mark: what has a time (that may be an earlier one, and is never 0) has the mark `ended`,
        and the first that has none `begun`."""
        ...

    def note(self, number: int) -> None:
        """Note a number that tells what became of the task, if its worker cannot."""

    def clock(self, began: float) -> None:
        """Note when the present object began, by `time.monotonic()`, or 0 when it has ended."""


class Session(Protocol):
    """An opened worker: it runs tasks one after the other and then is closed, in one thread."""

    def run(self, payload: Any, marks: Marks, reply: Callable[[Any, bool], None]) -> None:
        """Run one task, calling `reply(body, final)` at least once. Does not raise."""

    def close(self) -> None:
        """Leave nothing open."""


class Job(Protocol):
    """What every worker of a run needs. It can be pickled if the executor does not share memory with its workers."""

    @property
    def preload(self) -> bytes:
        """What `poolsave._environment.preload` needs to know in a fork server."""
        ...

    @property
    def timeout(self) -> float | None:
        """Seconds that an object may take; only executors that `enforce_timeout` are given any."""
        ...

    def settle(self, note: int) -> Any:
        """For the engine: what became of a transaction, by what its worker noted."""
        ...

    @property
    def fork_is_possible(self) -> bool:
        """Whether workers may be forked now."""
        ...

    @property
    def fork_changes_nothing(self) -> bool:
        """Whether a worker may be forked in the middle of a run, when the caller is at something else."""
        ...

    def before_start(self) -> None:
        """Must be called in the parent right before a worker process is started in place of another, in whichever way.
        The engine has called it before `start`."""

    def before_fork(self) -> None:
        """Must be called in the parent right before worker processes are forked."""

    def open(self, *, alone: bool = True) -> Session:
        """Set up a worker in the thread and process that will run tasks. Raises if that is impossible.

        Without `alone`, others use that process too, before, after or meanwhile.
        """
        ...


class Executor(Protocol):
    """Runs tasks. The class attributes say what it can promise; the engine and the documentation go by them.

    A pipeline waits for several executors at once. One that has a method `fileno` is waited for by that descriptor,
    which must be readable when `wait` has something to do (-1: there is none); one that has an attribute `on_event` is
    given a callable there, to be called from any thread after an event has come. Others are asked every few
    milliseconds.
    """

    @property
    def shares_memory(self) -> bool:
        """Whether workers see the caller's objects themselves, so that nothing needs to be pickled."""
        ...

    @property
    def inline(self) -> bool:
        """Whether tasks run in the thread that calls `wait`, on the caller's own connections."""
        ...

    @property
    def enforces_timeout(self) -> bool:
        """Whether an object that takes too long can be ended, also if it does not listen."""
        ...

    @property
    def blames_exactly(self) -> bool:
        """Whether a worker that dies costs at most the object that it was at, and all others are known."""
        ...

    @property
    def can_kill(self) -> bool:
        """Whether what runs can be ended at once, as a second Ctrl-C does."""
        ...

    @property
    def at_most_once(self) -> bool:
        """Whether no task is ever begun twice, also when its worker dies: what may have left something behind comes
        back as `Died` or `Broken`."""
        ...

    def start(self, job: Job, *, workers: int, longest: int) -> None:
        """Start up to `workers` workers now; no task will be longer than `longest` objects.

        An executor that can be used for several runs, one after the other, begins each of them anew here. If it has an
        attribute `running`, it is not started while that is true.
        """

    @property
    def workers(self) -> int:
        """How many tasks can run at once; 0 when all workers have ended."""
        ...

    def submit(self, task: Task) -> None:
        """Take a task. Does not block, whatever its size."""

    def wait(self, timeout: float | None) -> Sequence[Event]:
        """Give what has happened, waiting up to `timeout` seconds (None: as long as it takes) for at least one event.

        May return early without any event, but not if it is `inline` and has tasks.
        """
        ...

    def wake(self) -> None:
        """Make a `wait` that is under way in another thread, or the next one, return. Callable from any thread."""

    def halt(self) -> None:
        """Begin no further object: what runs is finished, the rest comes back as not started."""

    def kill(self) -> None:
        """End what runs at once, where that is possible; `wait` still tells of it."""

    def stop(self) -> None:
        """End all workers, which by now have nothing to do or were killed, and leave nothing behind."""


EXECUTOR_METHODS = ("start", "submit", "wait", "wake", "halt", "kill", "stop")
