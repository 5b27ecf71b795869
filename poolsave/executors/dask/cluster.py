"""Who works in a Dask cluster: finds its workers, admits those that run the caller's code, sends them tasks, and says
what becomes of a task whose worker leaves.

All of this runs in the event loop of a Dask client, a thread of its own; what it finds out goes to `tell`.
"""

from __future__ import annotations

import asyncio
import pickle
import time
import uuid
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..._environment.versions import Versions
from ..._pickling.exceptions import restore_exception
from ..._runtime.foreign_exceptions import add_note, is_a
from ...errors import ClusterUnusable, WorkerDied
from .messages import LostTask, SchedulerLost, SetupRefused, TaskEnded, WorkerJoined, WorkerLeft, import_dask
from .worker import RemoteCall, TaskAnswer, forget_run, halt, register_run, run_task, try_setup

HEARTBEAT = 0.5
"""Seconds between looks at who is there, besides what the scheduler tells by itself."""
WORKER_TIMEOUT = 30.0
"""Seconds in which some worker has to be there, also after the last one has left: nannies start them anew."""
MAX_FAILED_STARTS = 3
"""Workers in a row that may leave while they are set up, until the run is given up."""
LARGE = "distributed.admin.large-graph-warning-threshold"
MUCH = 1_000_000
"""Bytes; only from 10 MB does Dask warn, but who configures less gets a warning for that."""

IMPORTED = (
    "poolsave: Dask workers find functions by their names in modules that they can import, among which the script that "
    "runs is only if it has started the cluster itself"
)


class RunningTask(NamedTuple):
    """A task that is on its way."""

    task: int
    future: Any


@dataclass
class WorkerState:
    """A worker that is there, and from `admitted` on can be sent tasks."""

    address: str
    threads: int
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    admitted: bool = False
    welcome: asyncio.Task[None] | None = None
    errands: dict[str, RunningTask] = field(default_factory=dict)


class Cluster:
    """The workers of one run."""

    def __init__(self, client: Any, parcel: bytes, tell: Callable[[Any], None]) -> None:
        self._client = client
        self._parcel = parcel
        self._tell = tell
        self._versions = Versions.here()
        self._staff: dict[str, WorkerState] = {}
        self._turned_away: set[str] = set()
        self._stillborn = 0
        self._seen = time.monotonic()

    async def watch(self) -> None:
        """Look after the workers until cancelled."""
        try:
            self._client.subscribe_topic("all", self._heard)
            await self._refuse_strangers()
            while True:
                await self._look()
                await asyncio.sleep(HEARTBEAT)
        except Exception as error:  # whatever the connection raises: from here on nothing can be known
            self._tell(SchedulerLost(error))

    async def _refuse_strangers(self) -> None:
        answers: Any = self._client.run(Versions.here, on_error="return")
        for address, answer in (await answers).items():
            if (error := self._objection(address, answer)) is not None:
                raise error

    def _objection(self, address: str, answer: Any) -> BaseException | None:
        """What speaks against a worker, by what it said of itself."""
        if isinstance(answer, Versions):
            different = self._versions.differences(answer)
            return ClusterUnusable(f"the Dask worker {address} has {different}") if different else None
        if answer is None or isinstance(answer, OSError):
            return None  # it has left
        return ClusterUnusable(f"the Dask worker {address} cannot run poolsave {self._versions.poolsave}: {answer!r}")

    async def _look(self) -> None:
        answer: Any = self._client.nthreads()
        found: dict[str, int] = dict(await answer)
        for address in found.keys() - self._staff.keys() - self._turned_away:
            colleague = self._staff[address] = WorkerState(address, found[address])
            colleague.welcome = asyncio.create_task(self._welcome(colleague))
        for address in self._staff.keys() - found.keys():
            self._leave(address)
        if self._staff:
            self._seen = time.monotonic()
        elif time.monotonic() > self._seen + WORKER_TIMEOUT:
            self._tell(
                SetupRefused(ClusterUnusable(f"the Dask cluster has had no worker for {WORKER_TIMEOUT:.0f} seconds"))
            )

    def _heard(self, event: tuple[float, dict[str, Any]]) -> None:
        told = event[1]
        if told.get("action") == "remove-worker":
            self._leave(told["worker"])

    def _leave(self, address: str) -> None:
        self._turned_away.discard(address)
        colleague = self._staff.pop(address, None)
        if colleague is None:
            return
        # The scheduler also says which tasks a worker had, and the others would be known not to have begun. But it, and
        # the client, forget the end of a task whose result cannot be fetched since its worker is dying.
        errands, colleague.errands = colleague.errands, {}
        for errand in errands.values():
            self._tell(TaskEnded(address, errand.task, LostTask.UNKNOWN))
            errand.future.release()
        if colleague.admitted:
            self._tell(WorkerLeft(address))
        else:
            self._not_admitted(colleague)

    def _not_admitted(self, colleague: WorkerState) -> None:
        if colleague.welcome is not None:
            colleague.welcome.cancel()
        self._stillborn += 1
        if self._stillborn >= MAX_FAILED_STARTS:
            details = f"{colleague.address} left the Dask cluster while it was set up"
            self._tell(SetupRefused(WorkerDied(None, details=details)))

    async def _welcome(self, colleague: WorkerState) -> None:
        try:
            await self._admit(colleague)
        except Exception as error:  # of Dask's, such as a scheduler that has left
            self._tell(SetupRefused(error))

    async def _admit(self, colleague: WorkerState) -> None:
        address, token = colleague.address, colleague.token
        answers: Any = self._client.run(
            register_run, token, self._parcel, self._versions, workers=[address], on_error="return"
        )
        if self._objection(address, (await answers).get(address)) is not None:
            self._turned_away.add(address)
            del self._staff[address]
            return
        if await self._set_up(colleague):
            self._stillborn = 0
            colleague.admitted = True
            self._tell(WorkerJoined(address, colleague.threads))

    async def _set_up(self, colleague: WorkerState) -> bool:
        future = self._submit(RemoteCall(try_setup, colleague.token), uuid.uuid4().hex, colleague.address)
        try:
            refusal = await self._client.gather(future, asynchronous=True)
        except import_dask("distributed").KilledWorker:  # it has left, as the scheduler also tells
            return False
        finally:
            future.release()
        if refusal is not None:
            error = restore_exception(refusal)
            if is_a(error, AttributeError) or is_a(error, ImportError):
                add_note(error, IMPORTED)
            self._tell(SetupRefused(error))
        return refusal is None

    def _submit(self, order: RemoteCall, key: str, address: str) -> Any:
        packed = pickle.dumps(order, pickle.HIGHEST_PROTOCOL)
        # Dask warns of large tasks, which is for those who could have their workers load the data.
        with import_dask("dask").config.set({LARGE: 2 * len(packed)}) if len(packed) > MUCH else nullcontext():
            return self._client.submit(
                # Not the function itself: the scheduler restores it, and need not have poolsave or Django.
                pickle.loads,
                packed,
                key=f"poolsave-{key}",
                workers=[address],
                allow_other_workers=False,
                pure=False,
                retries=0,
            )

    async def send(self, address: str, task: int, oldest: int, payload: bytes) -> None:
        """Have a worker run a task; `oldest` is the first of those that have not ended. Tells how it ended."""
        colleague = self._staff.get(address)
        if colleague is None or not colleague.admitted:
            self._tell(TaskEnded(address, task, LostTask.UNTOUCHED))
            return
        order = RemoteCall(run_task, colleague.token, task, oldest, payload)
        future = self._submit(order, f"{colleague.token}-{task}", address)
        colleague.errands[future.key] = RunningTask(task, future)
        result = await self._result(future)
        future.release()
        if colleague.errands.pop(future.key, None) is None:
            return  # the worker has left, and what became of its tasks was told then
        self._tell(TaskEnded(address, task, result or LostTask.UNKNOWN))
        if result is None and self._staff.get(address) is colleague:
            self._leave(address)  # the worker there is not the one that it was; it is welcomed anew

    async def _result(self, future: Any) -> TaskAnswer | LostTask | BaseException | None:
        try:
            answer: TaskAnswer | None = await self._client.gather(future, asynchronous=True)
        except import_dask("distributed").KilledWorker:  # the scheduler has been told not to try again
            return LostTask.UNKNOWN
        except (Exception, asyncio.CancelledError) as error:  # Dask's own, whatever it is
            return error
        return LostTask.UNKNOWN if answer is not None and answer.repeated else answer

    async def halt(self) -> None:
        """Have no worker begin a further object."""
        await self._everywhere(halt)

    async def close(self) -> None:
        """Leave nothing in the workers."""
        with suppress(OSError, ValueError):
            self._client.unsubscribe_topic("all")
        await self._everywhere(forget_run)

    async def _everywhere(self, function: Callable[[str], None]) -> None:
        calls: list[Any] = [
            self._client.run(function, one.token, workers=[one.address], on_error="ignore")
            for one in self._staff.values()
        ]
        await asyncio.gather(*calls, return_exceptions=True)
