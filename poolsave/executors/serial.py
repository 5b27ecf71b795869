"""One task after the other, in the caller's own thread: for debugging, and the oracle for all other executors."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence

from .protocol import Broken, Event, Job, Replied, Session, Task

__all__ = ["SerialExecutor"]


class SerialExecutor:
    """Runs each task inside `wait`, on the caller's connections and inside the caller's transaction, if any."""

    shares_memory = True
    inline = True
    enforces_timeout = False
    blames_exactly = False
    can_kill = False
    at_most_once = True
    workers = 1

    def __init__(self, **_unused: object) -> None:
        self._session: Session | None = None

    @property
    def running(self) -> bool:
        return self._session is not None

    def start(self, job: Job, *, workers: int, longest: int) -> None:
        self._tasks: deque[Task] = deque()
        self._broken: deque[Broken] = deque()
        self._marks = LocalMarks()
        self._session = job.open()

    def submit(self, task: Task) -> None:
        self._tasks.append(task)

    def wait(self, timeout: float | None) -> Sequence[Event]:
        if self._broken:
            return [self._broken.popleft()]
        if not self._tasks or self._session is None:
            return ()
        task = self._tasks.popleft()
        events: list[Event] = []
        try:
            self._session.run(
                task.payload, self._marks, lambda body, final: events.append(Replied(task.id, body, final))
            )
        except (
            BaseException
        ) as error:  # a second Ctrl-C outside the object's own code; the engine gets it when it closes the run
            self._broken.append(Broken(task.id, error, begun=True))
            raise
        return events

    def wake(self) -> None:
        """Do nothing: `wait` never blocks here."""

    def halt(self) -> None:
        if self._session is not None:
            self._marks.halted = True

    def kill(self) -> None:
        """Like `halt`: only an exception ends an object in this thread, for example a second Ctrl-C."""
        self.halt()

    def stop(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


class LocalMarks:
    """Marks for workers in the caller's process. They cannot die alone, so only `halted` is kept."""

    def __init__(self) -> None:
        self.halted = False

    def put(self, offset: int, mark: int) -> None:
        """Do nothing: an object that starts here ends here."""

    def stamps(self, size: int, *, begun: int, ended: int) -> array[float]:
        """Return an array for the end times, which nothing reads."""
        return array("d", bytes(8 * size))

    def note(self, number: int) -> None:
        """Do nothing, as in `put`."""

    def clock(self, began: float) -> None:
        """Do nothing, as in `put`."""
