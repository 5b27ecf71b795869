"""The protocol between the engine and the executors. Other packages may implement it.

The engine calls, all from one thread: `start`, then `submit` and `wait` in turn, then `stop`. Each submitted task must
come back in events: its replies in order with `final=True` on the last one, or `Died`, or `Broken`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeGuard

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
    "NotAdded",
    "Ready",
    "Replied",
    "Resizable",
    "Retired",
    "Session",
    "SetupFailed",
    "Task",
    "is_resizable",
]


class Task(NamedTuple):
    """One chunk for a worker. Only the worker code interprets `payload`."""

    id: int
    payload: Any
    size: int


class Replied(NamedTuple):
    """A worker replied for objects of a task; `final`: for the last ones."""

    task: int
    body: Any
    final: bool


class Ready(NamedTuple):
    """A worker is set up, `seconds` after its start. It is optional and for the statistics only."""

    worker: int | str
    seconds: float


class Died(NamedTuple):
    """A worker process exited. `running` is the task that it had started, with one mark per object. `queued` are tasks
    that it had been sent and had certainly not started."""

    error: WorkerDied
    running: int | None
    marks: bytes
    queued: tuple[int, ...]
    note: int = 0
    """The last number that it noted in that task, or 0."""
    overdue: bool = False
    """It was ended because its object exceeded the time-out."""
    worker: int | None = None
    """Its process id, for the statistics."""


class Broken(NamedTuple):
    """The executor lost a task. `begun` is False only if certainly no worker has started it."""

    task: int
    error: BaseException
    begun: bool


class SetupFailed(NamedTuple):
    """A worker could not be set up, and has run nothing."""

    error: BaseException


class NotAdded(NamedTuple):
    """A worker that `resize` has started could not be set up. It has run nothing, and the run goes on without it."""

    error: BaseException


class Retired(NamedTuple):
    """A worker has ended that `resize` has retired. It is optional and for the statistics only."""

    worker: int | str


Event: TypeAlias = Ready | Replied | Died | Broken | SetupFailed | NotAdded | Retired


class Marks(Protocol):
    """Where a worker notes how far it is. In a process executor the marks outlive the worker."""

    @property
    def halted(self) -> bool:
        """Whether no further object may start."""
        ...

    def put(self, offset: int, mark: int) -> None:
        """Note the mark of one object of the current task."""

    def stamps(self, size: int, *, begun: int, ended: int) -> memoryview[float] | array[float]:
        """Return a zeroed array of end times, one per object of the current task, used instead of `put`.

        An object with a non-zero time has the mark `ended`; the first zero is `begun`. A time may be too early, but is
        never 0. The array may be longer than the task.
        """
        ...

    def note(self, number: int) -> None:
        """Note a number by which `Job.settle` finds out what became of a transaction if the worker dies."""

    def clock(self, began: float) -> None:
        """Note when the current object started, by `time.monotonic()`; 0: it has ended."""


class Session(Protocol):
    """An opened worker. One thread runs its tasks one after the other, and then closes it."""

    def run(self, payload: Any, marks: Marks, reply: Callable[[Any, bool], None]) -> None:
        """Run one task, calling `reply(body, final)` at least once. Does not raise."""

    def close(self) -> None:
        """Close everything that the session has opened."""


class Job(Protocol):
    """What every worker of a run needs. Executors that share no memory with their workers may pickle it."""

    @property
    def preload(self) -> bytes:
        """What `poolsave._environment.preload` reads in a fork server."""
        ...

    @property
    def timeout(self) -> float | None:
        """Seconds that an object may take, or None. Only for executors with `enforces_timeout`."""
        ...

    def settle(self, note: int) -> Any:
        """For the engine: what became of a transaction, by the number that its worker noted."""
        ...

    @property
    def fork_is_possible(self) -> bool:
        """Whether workers may be forked now."""
        ...

    @property
    def fork_changes_nothing(self) -> bool:
        """Whether a worker may be forked in the middle of a run, whatever the caller does at that moment."""
        ...

    def before_start(self) -> None:
        """Call it in the parent right before a worker process replaces another one, by any start method.

        For the first workers the engine calls it, before `start`.
        """

    def before_fork(self) -> None:
        """Call it in the parent right before worker processes are forked."""

    def open(self, *, alone: bool = True, added: bool = False) -> Session:
        """Set up a worker in the thread that will run its tasks. Raises if that is impossible.

        `alone=False`: other code uses the process too, before, after or meanwhile. `added`: the run has others, and
        this one is not worth an error: raises too if a database has no connection left for it.
        """
        ...

    def room_for_workers(self) -> int | None:
        """For the engine: how many more workers may be added now; None if nothing limits them."""
        ...


class Executor(Protocol):
    """Runs tasks. The class attributes say what it guarantees; the engine and the documentation rely on them.

    A pipeline waits for several executors at once, in one of three ways. A method `fileno` returns a descriptor that is
    readable when `wait` has something to do (-1: there is none). An attribute `on_event` is set to a callable that the
    executor calls from any thread after an event has come. All other executors are polled every few milliseconds.

    Three more attributes are optional. `target_seconds` is what an automatic chunk takes, if not 75 ms, or 300 ms
    with `batch_writes`. `latency` is how many seconds a worker idles between two tasks that are sent one by one, as
    measured; short tasks are then submitted several at a time. `follows_cluster` says that `workers` comes from
    elsewhere: with `workers="auto"` there is no limit to it.
    """

    @property
    def shares_memory(self) -> bool:
        """Whether workers get the caller's objects themselves, without pickling."""
        ...

    @property
    def inline(self) -> bool:
        """Whether tasks run in the thread that calls `wait`, on the caller's own connections."""
        ...

    @property
    def enforces_timeout(self) -> bool:
        """Whether an object that exceeds its time-out can be ended, even if it ignores exceptions."""
        ...

    @property
    def blames_exactly(self) -> bool:
        """Whether the death of a worker costs at most the object that it was running; all others are known."""
        ...

    @property
    def can_kill(self) -> bool:
        """Whether running objects can be ended at once, as a second Ctrl-C does."""
        ...

    @property
    def at_most_once(self) -> bool:
        """Whether no task ever starts twice, even if its worker dies: a task that may have had effects comes back as
        `Died` or `Broken`."""
        ...

    def start(self, job: Job, *, workers: int, longest: int) -> None:
        """Start up to `workers` workers now. No task will have more than `longest` objects.

        An executor that serves several runs, one after the other, resets itself here. If it has an attribute
        `running`, it is not started while that is true.
        """

    @property
    def workers(self) -> int:
        """How many tasks can run at once; 0 once all workers have ended."""
        ...

    def submit(self, task: Task) -> None:
        """Take a task. It must not block, whatever the size of the task."""

    def wait(self, timeout: float | None) -> Sequence[Event]:
        """Return events, waiting up to `timeout` seconds (None: as long as it takes) for the first one.

        May return early without any event, but not if it is `inline` and has tasks.
        """
        ...

    def wake(self) -> None:
        """Make the present or the next `wait` return. Callable from any thread."""

    def halt(self) -> None:
        """Start no further object. Running objects are finished; the others come back as not started."""

    def kill(self) -> None:
        """End running objects at once, where that is possible. `wait` still returns their events."""

    def stop(self) -> None:
        """End all workers, which are idle or killed by now, and leave nothing behind."""


class Resizable(Executor, Protocol):
    """An executor that can change the number of its workers while it runs. Others keep their number.

    A worker that is added counts, and gets tasks, once it is set up; a `Ready` says so. If that fails there is a
    `NotAdded`. A worker that is retired gets no more tasks, and ends after those that it has.
    """

    def resize(self, workers: int) -> None:
        """Add or retire workers, so that there will be so many, at least one. It does not wait for them.

        Does not raise: where none can be started safely now, such as beside other threads, there stay fewer.
        """

    @property
    def joining(self) -> int:
        """How many workers `resize` has started that are not set up yet, and so do not count."""
        ...


def is_resizable(executor: Executor) -> TypeGuard[Resizable]:
    """Whether it has the methods of `Resizable`."""
    return hasattr(executor, "resize") and hasattr(executor, "joining")


EXECUTOR_METHODS = ("start", "submit", "wait", "wake", "halt", "kill", "stop")
