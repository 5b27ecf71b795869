"""The executor for Dask clusters, on this machine or on others. The caller's thread drives it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..._environment.project_settings import executor_settings
from ..._pickling.exceptions import restore_exception
from ..._runtime.redacted import dumps
from ...errors import InvalidOption, WorkerDied
from ..event_queue import EventQueueExecutor
from ..protocol import UNKNOWN, Broken, Died, Event, Job, Replied, SetupFailed, Task
from .cluster import Cluster
from .messages import (
    Bundle,
    BundleEnded,
    LostBundle,
    SchedulerLost,
    SetupRefused,
    WorkerJoined,
    WorkerLeft,
    import_dask,
)
from .worker import BundleAnswer, TaskAnswer

PORTLESS = ("inproc://", "ucx://")
"""Schemes of addresses that have no port to check."""
STOP_TIMEOUT = 10.0
"""Seconds that workers have to remove a run at its end."""
SMOOTHING = 0.8
"""Weight of the past in the average of the latency."""


class DaskExecutor(EventQueueExecutor):
    """Runs each task as one Dask task, in the worker that it is sent to and in no other.

    It opens a connection of its own to the scheduler, and leaves the client or cluster that it is given unchanged.
    `workers` limits how many tasks run at once; each takes one thread of the cluster. Short tasks go several at a time
    as one Dask task. If a worker dies, the tasks that it was sent are lost, since their progress is unknown. The run
    goes on with the other workers and with those that join. No task starts twice: Dask runs the tasks of dead workers
    again, but poolsave's workers refuse that. If a worker has another poolsave, Python (3.x), Django or settings
    module, nothing runs. Such a worker that joins later is not used.

    Example:
        report = operation.using(executor=DaskExecutor(Client("tcp://...")), workers=100).map(rows)
    """

    follows_cluster = True
    """Whether `workers="auto"` means as many as the cluster has at each moment."""
    target_seconds = 1.0
    """Seconds of work that an automatic chunk aims at: long compared to the latency of Dask, some 20 ms."""
    latency = 0.0
    """Smoothed seconds between two bundles of a worker's thread in which it has nothing to do, as measured."""

    def __init__(self, where: Any) -> None:
        """Take a `distributed.Client`, a Dask cluster, or the address of a scheduler."""
        import_dask("distributed")
        self._where = where
        self._client: Any = None
        self._reset(0)

    @classmethod
    def from_settings(cls, **_unused: object) -> DaskExecutor:
        """What `executor="dask"` means: the cluster that `settings.POOLSAVE`, or Dask's own configuration, name.

        Raises:
            InvalidOption: if none does, or Dask is not installed.
        """
        configured = import_dask("dask").config.get("scheduler-address", None)
        address = executor_settings("dask").get("address") or configured
        if not address:
            raise InvalidOption(
                "executor",
                "dask",
                'give the address of a scheduler by settings.POOLSAVE = {"dask": {"address": "tcp://..."}} or by '
                "DASK_SCHEDULER_ADDRESS in the environment, or use executor=poolsave.executors.DaskExecutor(client)",
            )
        return cls(address)

    def _reset(self, limit: int) -> None:
        self._clear_events()
        self._backlog: deque[Task] = deque()
        self._slots: dict[str, WorkerSlot] = {}
        self._sent: dict[int, SentBundle] = {}
        self._last_bundle = 0
        self._limit = limit
        self.latency = 0.0

    @property
    def running(self) -> bool:
        return self._client is not None

    @property
    def workers(self) -> int:
        return min(self._limit, sum(slot.threads for slot in self._slots.values()))

    def start(self, job: Job, *, workers: int, longest: int) -> None:
        _refuse_inside_task()
        self._reset(workers)
        # Pickled once, and here: a function that cannot be pickled is refused before anything runs.
        pickled_job = dumps(job)
        self._client = _connect(self._where)
        self._cluster = Cluster(self._client, pickled_job, self._emit)
        self._watch = self._in_loop(self._cluster.watch())

    def _in_loop(self, coroutine: Any) -> concurrent.futures.Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._client.loop.asyncio_loop)

    def submit(self, task: Task) -> None:
        self._backlog.append(task)  # sent by `wait`, so that tasks which are submitted together may go together

    def _dispatch(self) -> None:
        """Send the backlog: to no worker more bundles than it can start at once, since all may be lost with it."""
        bundles: dict[str, list[Bundle]] = {}
        while self._backlog and (free := self.workers - len(self._sent)) > 0:
            address, slot = max(self._slots.items(), key=lambda item: item[1].free)
            tasks = [self._backlog.popleft() for _ in range(self._bundle_size(free))]
            self._last_bundle += 1
            slot.bundles.add(self._last_bundle)
            self._sent[self._last_bundle] = SentBundle(tasks, time.perf_counter())
            bundles.setdefault(address, []).append(Bundle(self._last_bundle, [task.payload for task in tasks]))
        oldest = next(iter(self._sent), 0)
        for address, of_worker in bundles.items():
            self._in_loop(self._cluster.send(address, of_worker, oldest))

    def _bundle_size(self, free: int) -> int:
        """A thread's share of the backlog, and of all that runs: only short tasks are submitted several each."""
        waiting = len(self._backlog)
        running = sum(len(sent.tasks) for sent in self._sent.values())
        return min(-(-waiting // free), -(-(waiting + running) // self.workers))

    def wait(self, timeout: float | None) -> Sequence[Event]:
        self._dispatch()
        messages = self._take_events(timeout)
        events = [event for message in messages for event in self._events_of(message)]
        self._dispatch()
        return events

    def _events_of(self, message: Any) -> Sequence[Event]:
        match message:
            case BundleEnded():
                return self._on_bundle_ended(message)
            case WorkerJoined():
                self._slots[message.address] = WorkerSlot(message.threads)
            case WorkerLeft():
                self._slots.pop(message.address, None)
            case SetupRefused():
                return [SetupFailed(message.error)]
            case SchedulerLost():
                return [SetupFailed(message.error), *self._lose_all(message.error)]
            case Broken():
                return [message]
        return []

    def _on_bundle_ended(self, message: BundleEnded) -> Sequence[Event]:
        sent = self._sent.pop(message.bundle, None)
        if sent is None:
            return []  # lost with the scheduler
        if message.address in self._slots:
            self._slots[message.address].bundles.discard(message.bundle)
        if isinstance(message.result, BundleAnswer):
            self._learn(time.perf_counter() - sent.at - message.result.seconds)
            return _events_of_answer(sent.tasks, message.result)
        if isinstance(message.result, BaseException):
            return [Broken(task.id, message.result, begun=True) for task in sent.tasks]
        died = WorkerDied(None, details=f"{message.address} left the Dask cluster")
        if message.result is LostBundle.UNTOUCHED:
            return [Died(died, None, b"", tuple(task.id for task in sent.tasks))]
        return [Died(died, task.id, bytes([UNKNOWN]) * task.size, ()) for task in sent.tasks]

    def _learn(self, seconds: float) -> None:
        self.latency = SMOOTHING * self.latency + (1 - SMOOTHING) * seconds if self.latency else seconds

    def _lose_all(self, error: BaseException) -> list[Event]:
        lost = [Broken(task.id, error, begun=True) for sent in self._sent.values() for task in sent.tasks]
        self._sent.clear()
        self._slots.clear()
        return [*lost, *self._withdraw_backlog()]

    def _withdraw_backlog(self) -> list[Broken]:
        tasks, self._backlog = self._backlog, deque()
        return [Broken(task.id, concurrent.futures.CancelledError(), begun=False) for task in tasks]

    def halt(self) -> None:
        for event in self._withdraw_backlog():
            self._emit(event)
        if self._client is not None:
            self._in_loop(self._cluster.halt())

    def stop(self) -> None:
        if self._client is None:
            return
        client = self._client
        try:
            self._watch.cancel()
            self._in_loop(self._cluster.close()).result(STOP_TIMEOUT)
        except TimeoutError:
            pass  # a worker that is too busy to answer keeps the state of this run until it exits
        finally:
            self._client = None
            client.close()
            client._loop_runner.stop()  # a client that has closed itself, as its scheduler was lost, keeps its thread


class SentBundle(NamedTuple):
    """Tasks that were sent together, and when, by `time.perf_counter()`."""

    tasks: Sequence[Task]
    at: float


@dataclass
class WorkerSlot:
    """The threads of an admitted worker, and the bundles that it was sent and has not answered."""

    threads: int
    bundles: set[int] = field(default_factory=set)

    @property
    def free(self) -> int:
        return self.threads - len(self.bundles)


def _events_of_answer(tasks: Sequence[Task], answer: BundleAnswer) -> list[Event]:
    events: list[Event] = []
    for number, task in enumerate(tasks):
        events += _replies_of(task.id, answer.answers[number])
    return events


def _replies_of(task: int, answer: TaskAnswer) -> Sequence[Event]:
    if answer.error is None:
        return [Replied(task, body, number == len(answer.replies)) for number, body in enumerate(answer.replies, 1)]
    error = restore_exception(answer.error)
    broken = Broken(task, error, begun=answer.begun)
    return [broken] if answer.begun else [SetupFailed(error), broken]


def _refuse_inside_task() -> None:
    try:
        address = import_dask("distributed").get_worker().address
    except ValueError:  # this thread runs no task
        return
    raise InvalidOption(
        "executor",
        "dask",
        f"this is a task of the Dask worker {address}, for whose thread the chunks would wait: use another executor",
    )


def _connect(where: Any) -> Any:
    """Make a separate client. Closing it ends only its own tasks, and it shares no handlers with the caller's."""
    address = where if isinstance(where, str) else getattr(where, "scheduler_address", None)
    address = address or getattr(getattr(where, "scheduler", None), "address", None)
    if not isinstance(address, str):
        raise InvalidOption("executor", where, "give a connected distributed.Client, a Dask cluster or an address")
    if not address.startswith(PORTLESS):
        try:  # Dask's client would check it too late: it leaves a thread behind that keeps the interpreter from exiting
            import_dask("distributed.comm").get_address_host_port(address)
        except ValueError as error:
            raise InvalidOption("executor", where, f"give an address such as tcp://scheduler:8786: {error}") from error
    security = getattr(where, "security", None)
    return import_dask("distributed").Client(address, security=security, set_as_default=False)
