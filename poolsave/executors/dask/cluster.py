"""The workers of a Dask cluster: finds them, admits those that run the caller's code, sends them bundles of tasks,
and reports bundles whose worker has left.

It runs in the event loop of a Dask client, which has a thread of its own. `DaskExecutor` passes `emit` and receives the
messages of `messages.py` by it.
"""

from __future__ import annotations

import asyncio
import pickle
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..._environment.versions import Versions
from ..._pickling.exceptions import restore_exception
from ..._runtime.foreign_exceptions import add_note, is_a
from ...errors import ClusterUnusable, WorkerDied
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
from .worker import BundleAnswer, RemoteCall, forget_run, halt, register_run, run_bundle, try_setup

HEARTBEAT = 0.5
"""Polling interval in seconds for the list of workers. The scheduler also reports most changes by itself."""
WORKER_TIMEOUT = 30.0
"""Seconds that the cluster may have no worker, at the start or later: nannies restart workers."""
MAX_FAILED_STARTS = 3
"""Number of workers that may leave in a row while they are set up. Then the run is given up."""
WARNING_THRESHOLD = "distributed.admin.large-graph-warning-threshold"
"""The name of Dask's setting, in bytes."""
LARGE_PAYLOAD = 1_000_000
"""Payloads above this many bytes get their own warning threshold: Dask's default is 10 MB, but users may lower it."""

IMPORT_NOTE = (
    "poolsave: Dask workers find functions by their names in modules that they can import, among which the script that "
    "runs is only if it has started the cluster itself"
)


class RunningBundle(NamedTuple):
    """A bundle that was sent and has not ended."""

    number: int
    future: Any


@dataclass
class WorkerState:
    """A worker of the cluster. Once `admitted`, it can be sent bundles."""

    address: str
    threads: int
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    admitted: bool = False
    admission: asyncio.Task[None] | None = None
    running: dict[str, RunningBundle] = field(default_factory=dict)


class Cluster:
    """The workers of one run."""

    def __init__(self, client: Any, pickled_job: bytes, emit: Callable[[Any], None]) -> None:
        self._client = client
        self._pickled_job = pickled_job
        self._emit = emit
        self._versions = Versions.here()
        self._workers: dict[str, WorkerState] = {}
        self._rejected: set[str] = set()
        self._failed_starts = 0
        self._last_seen = time.monotonic()

    async def watch(self) -> None:
        """Keep the list of workers up to date until cancelled."""
        try:
            self._client.subscribe_topic("all", self._on_scheduler_event)
            await self._check_versions()
            while True:
                await self._refresh()
                await asyncio.sleep(HEARTBEAT)
        except Exception as error:  # whatever the connection raises: without it nothing is known any more
            self._emit(SchedulerLost(error))

    async def _check_versions(self) -> None:
        answers: Any = self._client.run(Versions.here, on_error="return")
        for address, answer in (await answers).items():
            if (error := self._mismatch(address, answer)) is not None:
                raise error

    def _mismatch(self, address: str, answer: Any) -> BaseException | None:
        """Why a worker cannot run the caller's code, by its answer; None if it can."""
        if isinstance(answer, Versions):
            different = self._versions.differences(answer)
            return ClusterUnusable(f"the Dask worker {address} has {different}") if different else None
        if answer is None or isinstance(answer, OSError):
            return None  # it has left
        return ClusterUnusable(f"the Dask worker {address} cannot run poolsave {self._versions.poolsave}: {answer!r}")

    async def _refresh(self) -> None:
        answer: Any = self._client.nthreads()
        threads: dict[str, int] = dict(await answer)
        for address in threads.keys() - self._workers.keys() - self._rejected:
            worker = self._workers[address] = WorkerState(address, threads[address])
            worker.admission = asyncio.create_task(self._add(worker))
        for address in self._workers.keys() - threads.keys():
            self._remove(address)
        if self._workers:
            self._last_seen = time.monotonic()
        elif time.monotonic() > self._last_seen + WORKER_TIMEOUT:
            self._emit(
                SetupRefused(ClusterUnusable(f"the Dask cluster has had no worker for {WORKER_TIMEOUT:.0f} seconds"))
            )

    def _on_scheduler_event(self, event: tuple[float, dict[str, Any]]) -> None:
        message = event[1]
        if message.get("action") == "remove-worker":
            self._remove(message["worker"])

    def _remove(self, address: str) -> None:
        self._rejected.discard(address)
        worker = self._workers.pop(address, None)
        if worker is None:
            return
        # Why UNKNOWN: the scheduler also reports which tasks a worker had, so the others would be known not to have
        # started. But if a worker dies before the result of one that ended is fetched, scheduler and client forget it.
        running, worker.running = worker.running, {}
        for lost in running.values():
            self._emit(BundleEnded(address, lost.number, LostBundle.UNKNOWN))
            lost.future.release()
        if worker.admitted:
            self._emit(WorkerLeft(address))
        else:
            self._on_failed_start(worker)

    def _on_failed_start(self, worker: WorkerState) -> None:
        if worker.admission is not None:
            worker.admission.cancel()
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            text = f"{worker.address} left the Dask cluster while it was set up"
            self._emit(SetupRefused(WorkerDied(None, details=text)))

    async def _add(self, worker: WorkerState) -> None:
        try:
            await self._admit(worker)
        except Exception as error:  # of Dask, for example because the scheduler has left
            self._emit(SetupRefused(error))

    async def _admit(self, worker: WorkerState) -> None:
        address, token = worker.address, worker.token
        answers: Any = self._client.run(
            register_run, token, self._pickled_job, self._versions, workers=[address], on_error="return"
        )
        if self._mismatch(address, (await answers).get(address)) is not None:
            self._rejected.add(address)
            del self._workers[address]
            return
        if await self._set_up(worker):
            self._failed_starts = 0
            worker.admitted = True
            self._emit(WorkerJoined(address, worker.threads))

    async def _set_up(self, worker: WorkerState) -> bool:
        (future,) = self._submit({uuid.uuid4().hex: RemoteCall(try_setup, worker.token)}, worker.address)
        try:
            failure = await self._client.gather(future, asynchronous=True)
        except import_dask("distributed").KilledWorker:  # it has left, which the scheduler reports as well
            return False
        finally:
            future.release()
        if failure is not None:
            error = restore_exception(failure)
            if is_a(error, AttributeError) or is_a(error, ImportError):
                add_note(error, IMPORT_NOTE)
            self._emit(SetupRefused(error))
        return failure is None

    def _submit(self, calls: dict[str, RemoteCall], address: str) -> Sequence[Any]:
        """Submit calls by their keys, as one graph: each graph costs the scheduler as much as a task."""
        pickled = [pickle.dumps(call, pickle.HIGHEST_PROTOCOL) for call in calls.values()]
        # Dask warns of large tasks and advises to load the data in the workers, which is impossible here.
        with _without_size_warning(sum(map(len, pickled))):
            futures: Sequence[Any] = self._client.map(
                # Not the function itself: the scheduler unpickles it, and may have neither poolsave nor Django.
                pickle.loads,
                pickled,
                key=[f"poolsave-{key}" for key in calls],
                workers=[address],
                allow_other_workers=False,
                pure=False,
                retries=0,
            )
            return futures

    async def send(self, address: str, bundles: Sequence[Bundle], oldest: int) -> None:
        """Run bundles in a worker and emit how each ended. `oldest` is the first of the run that has not ended."""
        worker = self._workers.get(address)
        if worker is None or not worker.admitted:
            for bundle in bundles:
                self._emit(BundleEnded(address, bundle.number, LostBundle.UNTOUCHED))
            return
        calls = {
            f"{worker.token}-{bundle.number}": RemoteCall(
                run_bundle, worker.token, bundle.number, oldest, bundle.payloads
            )
            for bundle in bundles
        }
        futures = self._submit(calls, address)
        sent = [RunningBundle(bundle.number, future) for bundle, future in zip(bundles, futures, strict=True)]
        worker.running.update((running.future.key, running) for running in sent)
        await asyncio.gather(*(self._await(worker, running) for running in sent))

    async def _await(self, worker: WorkerState, running: RunningBundle) -> None:
        number, future = running
        address, result = worker.address, await self._result(future)
        future.release()
        if worker.running.pop(future.key, None) is None:
            return  # the worker has left, and `_remove` has reported its bundles
        self._emit(BundleEnded(address, number, result or LostBundle.UNKNOWN))
        if result is None and self._workers.get(address) is worker:
            self._remove(address)  # another process has this address now; it is admitted anew

    async def _result(self, future: Any) -> BundleAnswer | LostBundle | BaseException | None:
        try:
            answer: BundleAnswer | None = await self._client.gather(future, asynchronous=True)
        except import_dask("distributed").KilledWorker:  # retries=0: the scheduler does not try again
            return LostBundle.UNKNOWN
        except (Exception, asyncio.CancelledError) as error:  # whatever Dask raises
            return error
        return LostBundle.UNKNOWN if answer is not None and answer.repeated else answer

    async def halt(self) -> None:
        """Let no worker start a further object."""
        await self._run_on_all(halt)

    async def close(self) -> None:
        """Remove the run from all workers, unless the scheduler is lost."""
        if self._client.status == "closed":
            return
        with suppress(OSError, ValueError):
            self._client.unsubscribe_topic("all")
        await self._run_on_all(forget_run)

    async def _run_on_all(self, function: Callable[[str], None]) -> None:
        calls: list[Any] = [
            self._client.run(function, worker.token, workers=[worker.address], on_error="ignore")
            for worker in self._workers.values()
        ]
        await asyncio.gather(*calls, return_exceptions=True)


def _without_size_warning(size: int) -> AbstractContextManager[object]:
    if size <= LARGE_PAYLOAD:
        return nullcontext()
    threshold: AbstractContextManager[object] = import_dask("dask").config.set({WARNING_THRESHOLD: 2 * size})
    return threshold
