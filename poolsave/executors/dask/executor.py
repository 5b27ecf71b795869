"""The workers of a Dask cluster, on this machine or on others."""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..._db.redacted import dumps
from ..._environment.project_settings import of_executor
from ..._pickling.exceptions import restore_exception
from ...errors import InvalidOption, WorkerDied
from ..protocol import UNKNOWN, Broken, Died, Event, Job, Replied, SetupFailed, Task
from .cluster import Cluster
from .messages import LostTask, SchedulerLost, SetupRefused, TaskEnded, WorkerJoined, WorkerLeft, import_dask
from .worker import TaskAnswer

PORTLESS = ("inproc://", "ucx://")
"""Addresses without a port that could be checked."""
STOP_TIMEOUT = 10.0
"""Seconds that workers get to forget a run, at its end."""


class DaskExecutor:
    """Runs each task as one Dask task, in a worker that was chosen for it and in no other.

    It has a connection of its own to the scheduler of the client, cluster or address that it is given, which stay as
    they are. `workers` says how many tasks run at once, at most, in as many threads of the cluster. What a worker was
    at when it died is lost, since nobody knows how far it came; the run goes on with the others and with those that
    join. Nothing is begun twice, though Dask runs the tasks of dead workers again: workers refuse that. If a worker has
    another poolsave, Python (3.x), Django or settings module, nothing runs; if such a one joins later, it is not used.

    Example:
        report = operation.using(executor=DaskExecutor(Client("tcp://...")), workers=100).map(rows)
    """

    shares_memory = False
    inline = False
    enforces_timeout = False
    blames_exactly = False
    can_kill = False
    at_most_once = True

    def __init__(self, where: Any) -> None:
        """Take a `distributed.Client`, a Dask cluster, or the address of a scheduler."""
        import_dask("distributed")
        self._where = where
        self._client: Any = None
        self.on_event: Callable[[], None] | None = None
        self._start_over(0)

    @classmethod
    def from_settings(cls, **_unused: object) -> DaskExecutor:
        """What `executor="dask"` means: the cluster that `settings.POOLSAVE`, or Dask's own configuration, name.

        Raises:
            InvalidOption: if none does, or Dask is not installed.
        """
        configured = import_dask("dask").config.get("scheduler-address", None)
        address = of_executor("dask").get("address") or configured
        if not address:
            raise InvalidOption(
                "executor",
                "dask",
                'give the address of a scheduler by settings.POOLSAVE = {"dask": {"address": "tcp://..."}} or by '
                "DASK_SCHEDULER_ADDRESS in the environment, or use executor=poolsave.executors.DaskExecutor(client)",
            )
        return cls(address)

    def _start_over(self, limit: int) -> None:
        self._news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._backlog: deque[Task] = deque()
        self._seats: dict[str, WorkerSlot] = {}
        self._sent: dict[int, int] = {}
        self._limit = limit

    @property
    def running(self) -> bool:
        return self._client is not None

    @property
    def workers(self) -> int:
        return min(self._limit, sum(seat.threads for seat in self._seats.values()))

    def start(self, job: Job, *, workers: int, longest: int) -> None:
        _refuse_inside_task()
        self._start_over(workers)
        # Once, and here: a function that cannot be pickled is refused before anything runs.
        parcel = dumps(job)
        self._client = _connect(self._where)
        self._cluster = Cluster(self._client, parcel, self._tell)
        self._watch = self._in_loop(self._cluster.watch())

    def _tell(self, news: Any) -> None:
        self._news.put(news)
        if self.on_event is not None:
            self.on_event()

    def _in_loop(self, coroutine: Any) -> concurrent.futures.Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._client.loop.asyncio_loop)

    def submit(self, task: Task) -> None:
        self._backlog.append(task)
        self._dispatch()

    def _dispatch(self) -> None:
        """Send no worker more than it can begin at once, since all that it has may be lost with it."""
        while self._backlog and len(self._sent) < self.workers:
            address, seat = max(self._seats.items(), key=lambda item: item[1].free)
            task = self._backlog.popleft()
            seat.tasks.add(task.id)
            self._sent[task.id] = task.size
            self._in_loop(self._cluster.send(address, task.id, min(self._sent), task.payload))

    def wait(self, timeout: float | None) -> Sequence[Event]:
        events: list[Event] = []
        try:
            news = self._news.get(timeout=timeout)
            while True:
                events += self._learned(news)
                news = self._news.get_nowait()
        except queue.Empty:
            self._dispatch()
            return events

    def _learned(self, news: Any) -> Sequence[Event]:
        match news:
            case TaskEnded():
                return self._ended(news)
            case WorkerJoined():
                self._seats[news.address] = WorkerSlot(news.threads)
            case WorkerLeft():
                self._seats.pop(news.address, None)
            case SetupRefused():
                return [SetupFailed(news.error)]
            case SchedulerLost():
                return [SetupFailed(news.error), *self._all_lost(news.error)]
            case Broken():
                return [news]
        return []

    def _ended(self, news: TaskEnded) -> Sequence[Event]:
        size = self._sent.pop(news.task, None)
        if size is None:
            return []  # lost with the scheduler
        if news.address in self._seats:
            self._seats[news.address].tasks.discard(news.task)
        if isinstance(news.result, TaskAnswer):
            return _answered(news.task, news.result)
        if isinstance(news.result, BaseException):
            return [Broken(news.task, news.result, begun=True)]
        gone = WorkerDied(None, details=f"{news.address} left the Dask cluster")
        if news.result is LostTask.UNTOUCHED:
            return [Died(gone, None, b"", (news.task,))]
        return [Died(gone, news.task, bytes([UNKNOWN]) * size, ())]

    def _all_lost(self, error: BaseException) -> list[Event]:
        lost = [Broken(task, error, begun=True) for task in self._sent]
        self._sent.clear()
        self._seats.clear()
        return [*lost, *self._taken_back()]

    def _taken_back(self) -> list[Broken]:
        tasks, self._backlog = self._backlog, deque()
        return [Broken(task.id, concurrent.futures.CancelledError(), begun=False) for task in tasks]

    def wake(self) -> None:
        self._news.put(None)

    def halt(self) -> None:
        for event in self._taken_back():
            self._tell(event)
        if self._client is not None:
            self._in_loop(self._cluster.halt())

    def kill(self) -> None:
        """A task that runs in a worker of somebody else's cannot be ended from outside: it is finished."""
        self.halt()

    def stop(self) -> None:
        if self._client is None:
            return
        client = self._client
        try:
            self._watch.cancel()
            self._in_loop(self._cluster.close()).result(STOP_TIMEOUT)
        except TimeoutError:
            pass  # a worker that is too busy to answer keeps what it knows of this run until it ends
        finally:
            self._client = None
            client.close()


@dataclass
class WorkerSlot:
    """A worker that can be sent tasks, and those that it was sent and has not answered."""

    threads: int
    tasks: set[int] = field(default_factory=set)

    @property
    def free(self) -> int:
        return self.threads - len(self.tasks)


def _answered(task: int, answer: TaskAnswer) -> Sequence[Event]:
    if answer.error is None:
        return [Replied(task, body, number == len(answer.replies)) for number, body in enumerate(answer.replies, 1)]
    error = restore_exception(answer.error)
    broken = Broken(task, error, begun=answer.begun)
    return [broken] if answer.begun else [SetupFailed(error), broken]


def _refuse_inside_task() -> None:
    try:
        address = import_dask("distributed").get_worker().address
    except ValueError:  # which says that this thread runs no task
        return
    raise InvalidOption(
        "executor",
        "dask",
        f"this is a task of the Dask worker {address}, for whose thread the chunks would wait: use another executor",
    )


def _connect(where: Any) -> Any:
    """A client of one's own: its end ends all that it has asked for, and it shares no handlers with the caller's."""
    address = where if isinstance(where, str) else getattr(where, "scheduler_address", None)
    address = address or getattr(getattr(where, "scheduler", None), "address", None)
    if not isinstance(address, str):
        raise InvalidOption("executor", where, "give a connected distributed.Client, a Dask cluster or an address")
    if not address.startswith(PORTLESS):
        try:  # before Dask's client does, which leaves a thread behind that keeps the interpreter from its exit
            import_dask("distributed.comm").get_address_host_port(address)
        except ValueError as error:
            raise InvalidOption("executor", where, f"give an address such as tcp://scheduler:8786: {error}") from error
    security = getattr(where, "security", None)
    return import_dask("distributed").Client(address, security=security, set_as_default=False)
