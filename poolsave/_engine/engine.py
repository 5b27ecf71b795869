"""The loop that feeds an executor within the window, and turns its events into outcomes.

For `map`, `stream` and pipelines it runs in the caller's thread, for a block in a driver thread. It knows no Django.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import Any

from .._pickling.values import pickle_chunk
from .._reports.batches import OutcomeBatch, unanswered_batch
from .._reports.durable import DurableRun
from .._reports.statistics import Statistics
from .._reports.trials import Trial
from .._runtime.foreign_exceptions import repr_of, set_cause
from .._worker.replies import Reply
from ..errors import DatabaseUnreachable
from ..executors import (
    Broken,
    Died,
    Event,
    Executor,
    Job,
    NotAdded,
    Ready,
    Replied,
    Retired,
    SetupFailed,
    Task,
    is_resizable,
)
from ..options import AUTO, Options, available_cpus, worker_range
from ..outcomes import Status
from .chunking import TARGET, FlowControl
from .crashes import Chunk, CrashAnalysis, StageMode, batch_from_reply, max_failures_reached, split_around
from .sizing import WorkerSizing
from .sources import Source
from .throttling import ThrottleMeter, build_meter
from .worker_policy import WorkerRange


class Engine:
    """Runs all objects of a source. Call `start`, then `step` until `finished`, then `close`."""

    def __init__(
        self, executor: Executor, job: Job, options: Options, source: Source, meter: ThrottleMeter | None = None
    ) -> None:
        """`meter`: one that is shared with other engines, in place of one for the throttles of the options."""
        self._executor = executor
        self._job = job
        self._options = options
        self._source = source
        self._settle = cache(job.settle)
        self._tasks: dict[int, Chunk] = {}
        self._requeued: deque[Chunk] = deque()
        self._ready: list[OutcomeBatch] = []
        target = getattr(executor, "target_seconds", TARGET)
        self._flow = FlowControl(options.chunksize, options.window, target=target)
        self._fed = 0
        self._ended = 0
        self._failed = 0
        self._last_task_id = 0
        self._entered = False
        self._sizing: WorkerSizing | None = None
        self.meter = meter or build_meter(options.throttle, options.databases, lambda: self.busy)
        """By which its throttles hold it back; None: there are none."""
        self._pacer = None if self.meter is None else self.meter.pacer
        self._idled = 0.0
        """Seconds for which throttles let nothing at all run."""
        self.statistics = Statistics()
        self._undelivered = 0
        self._max_lead: int | None = None
        self.fatal: BaseException | None = None
        """The error that makes it impossible to go on."""
        self.stopped: str | None = None
        """Why feeding stopped before the source was exhausted."""

    def start(self) -> None:
        """Start the workers: none for an empty source, and never more than chunks if the source knows its length."""
        if self._source.exhausted and not self._requeued:
            return
        limits = worker_range(self._options.workers)
        workers = self._first_workers(limits)
        length = self._source.remaining()
        if length is not None:
            size = 1 if self._options.chunksize == "auto" else self._options.chunksize
            workers = max(1, min(workers, -(-length // size)))
        if getattr(self._executor, "running", False):
            raise RuntimeError("this executor is running already: use an instance for one run at a time")
        if not self._executor.shares_memory:
            self._job.before_start()
        self._entered = True
        self._executor.start(self._job, workers=workers, longest=self._flow.longest)
        self._sizing = None
        if limits.is_open and is_resizable(self._executor):
            self.statistics.first_workers = self._executor.workers
            cpus = available_cpus()
            self._sizing = WorkerSizing(self._executor, self._job, limits, self.statistics, cpus=cpus)

    def _first_workers(self, limits: WorkerRange) -> int:
        if not getattr(self._executor, "follows_cluster", False):
            return limits.least
        return sys.maxsize if self._options.workers == AUTO else limits.most

    @property
    def inline(self) -> bool:
        """Whether objects run in the caller's thread, and so inside the caller's transactions."""
        return self._executor.inline

    @property
    def total(self) -> int | None:
        """How many outcomes there will be, if that is known. It may cost a query."""
        return self._source.total

    @property
    def run(self) -> DurableRun | None:
        """What the report says of a durable run; None: it is none."""
        return None

    def trials(self) -> tuple[Trial, ...]:
        """The executors that the run has tried: none, since it has one."""
        return ()

    @property
    def busy(self) -> int:
        """How many workers have a chunk."""
        return min(len(self._tasks), self._executor.workers)

    @property
    def finished(self) -> bool:
        """Whether every object that was fed has ended and no more will be fed."""
        return self._source.exhausted and not (self._tasks or self._requeued or self._ready)

    def step(self, *, undelivered: int = 0, max_lead: int | None = None) -> list[OutcomeBatch]:
        """Send as many chunks as there is room for, and return what has ended. Waits if there is nothing else to do.

        `undelivered` objects have ended but wait behind the engine; they count for the window. `max_lead` is the upper
        bound on objects in flight that the next stage of a pipeline sets.
        """
        self._undelivered, self._max_lead = undelivered, max_lead
        if self.stopped is not None:
            self._skip(self._source.give_up())
        self._feed()
        if self._ready:
            return self._take_ready()
        if self.finished:
            return []
        events = self._wait(self._wait_time())
        for event in events:
            self._handle(event)
        if self.stopped is not None and self._executor.inline and not events:
            self._lose_running("an exception from elsewhere came before its outcome")
        if self.fatal is not None and not self._executor.workers:
            self._skip_unstarted()
        if self._sizing is not None and self.stopped is None and not self._is_throttled:
            left = self._source.remaining()
            self._sizing.maybe_resize(ended=self._ended, left=left, chunksize=self._flow.shortest)
        return self._take_ready()

    def _wait_time(self) -> float | None:
        """Seconds until there may be something to do besides events. None: there will be nothing."""
        if self.meter is None or not self._has_more:
            return 0 if self._source.ready and self._has_room() else None
        # Before the question for room: it may be time for the next objects a moment later.
        paced = None if self._pacer is None else self._pacer.delay()
        if self._source.ready and self._has_room():
            return 0
        return min((seconds for seconds in (paced, self.meter.wait_time()) if seconds is not None), default=None)

    def _wait(self, timeout: float | None) -> Sequence[Event]:
        if self.meter is None or self._tasks or not timeout or not self._is_throttled:
            return self._executor.wait(timeout)
        started = time.perf_counter()
        try:
            if not self._executor.inline:
                return self._executor.wait(timeout)
            self.meter.nap(timeout)  # an inline executor without a task does not wait
            return ()
        finally:
            self._idled += time.perf_counter() - started

    def _take_ready(self) -> list[OutcomeBatch]:
        batches, self._ready = self._ready, []
        return batches

    def halt(self, reason: str) -> None:
        """Send no more chunks. Running objects are finished, the others are skipped."""
        if self.stopped is None and not self.finished:
            self.stopped = reason
            if self._entered:
                self._executor.halt()
        self._skip(self._source.give_up())
        while self._requeued:
            chunk = self._requeued.popleft()
            self._add(unanswered_batch(chunk.index, chunk.objects, Status.SKIPPED))

    def kill(self) -> None:
        """End running objects, at once where that is possible."""
        self._executor.kill()

    def wake(self) -> None:
        """End a wait, now or the next one. Callable from any thread, and in a signal handler."""
        self._executor.wake()
        if self.meter is not None:
            self.meter.wake()

    def abandon(self) -> None:
        """At the interpreter's exit: have the workers end, without waiting for them."""
        self._executor.halt()

    def close(self) -> None:
        """Stop the executor, which leaves nothing behind."""
        if self._entered:
            self._executor.stop()

    def lose_rest(self) -> list[OutcomeBatch]:
        """After `close` of a run that broke down: end the objects that have not ended."""
        self._lose_running("the run broke down before its outcome was known")
        return self._take_ready()

    def _skip(self, objects: Sequence[Any]) -> None:
        if objects:
            self._add(unanswered_batch(self._fed, objects, Status.SKIPPED))
            self._fed += len(objects)

    def _has_room(self) -> bool:
        # A requeued chunk is counted in the window already.
        return self._has_slot() and (bool(self._requeued) or self._next_size() > 0)

    def _has_slot(self) -> bool:
        slots = self._executor.workers * self._flow.prefetch
        if self.meter is not None and self._has_more:
            slots = self._throttled(slots, self.meter)
        return len(self._tasks) < slots

    @property
    def _has_more(self) -> bool:
        """Whether there is something left that throttles could hold back."""
        return self.stopped is None and not (self._source.exhausted and not self._requeued)

    @property
    def _is_throttled(self) -> bool:
        if self.meter is None:
            return False
        return self.meter.share < 1.0 or (self._pacer is not None and self._pacer.delay() is not None)

    def _throttled(self, slots: int, meter: ThrottleMeter) -> int:
        if self._pacer is not None and self._pacer.delay() is not None:
            return 0
        return meter.slots(slots, self._executor.workers)

    def _next_size(self) -> int:
        in_flight = self._fed - self._ended + self._undelivered
        workers, remaining = max(1, self._executor.workers), self._source.remaining()
        size = self._flow.next_size(in_flight=in_flight, remaining=remaining, workers=workers, max_lead=self._max_lead)
        if self._pacer is not None and self._options.chunksize == "auto":
            return min(size, self._pacer.most_at_once)
        return size

    def _feed(self) -> None:
        while self._has_slot():
            chunk = self._next_chunk()
            if chunk is None:
                return
            self._dispatch(chunk)

    def _next_chunk(self) -> Chunk | None:
        return self._requeued.popleft() if self._requeued else self._gather()

    def _gather(self) -> Chunk | None:
        if self._source.exhausted:
            return None
        size = self._next_size()
        if not size:
            return None
        started = time.perf_counter()
        objects = self._source.gather(size, idle=len(self._tasks) < self._executor.workers)
        self.statistics.pulling += time.perf_counter() - started
        if objects is None:
            return None
        chunk = Chunk(self._fed, objects)
        self._fed += len(objects)
        if self._pacer is not None:
            self._pacer.started(len(objects))
        return chunk

    def _dispatch(self, chunk: Chunk) -> None:
        if self._executor.shares_memory:
            self._submit(chunk, chunk.objects)
            return
        try:
            payload, errors = pickle_chunk(chunk.objects)
        except BaseException:  # SystemExit from an object's own pickling: the run ends, and the chunk has not started
            self._requeued.appendleft(chunk)
            raise
        if errors:
            self._cannot_send(chunk, errors)
        else:
            self._submit(chunk, payload)

    def _cannot_send(self, chunk: Chunk, errors: dict[int, BaseException]) -> None:
        for part in split_around(chunk, errors):
            self._requeued.appendleft(part)
        for offset, error in errors.items():
            self._add(unanswered_batch(chunk.index + offset, [chunk.objects[offset]], Status.FAILED, error))

    def _submit(self, chunk: Chunk, payload: Any) -> None:
        self._last_task_id += 1
        self._tasks[self._last_task_id] = chunk
        try:
            self._executor.submit(Task(self._last_task_id, payload, len(chunk.objects)))
        except BaseException as error:  # a user's executor may have taken the task all the same
            self._broken(Broken(self._last_task_id, error, begun=True))

    def _handle(self, event: Event) -> None:
        match event:
            case Replied():
                self._replied(event)
            case Ready() | NotAdded() | Retired():
                self._note_worker(event)
            case Died():
                self._died(event)
            case Broken():
                self._broken(event)
            case SetupFailed():
                self.fatal = event.error if self.fatal is None else self.fatal
                self.halt(f"a worker could not be set up: {repr_of(event.error)}")

    def _note_worker(self, event: Ready | NotAdded | Retired) -> None:
        if isinstance(event, Retired):
            self.statistics.retired(event.worker)
        elif isinstance(event, Ready):
            self.statistics.started(event.worker, event.seconds)
            if self._sizing is not None:
                self._sizing.started(event.seconds)
        elif self._sizing is not None:
            self._sizing.refused()

    def _replied(self, event: Replied) -> None:
        chunk = self._tasks.get(event.task)
        if chunk is None:  # given up
            return
        try:
            reply = event.body if self._executor.shares_memory else Reply.from_bytes(event.body)
        except BaseException as error:  # without an outcome, the engine would wait for the task for ever
            self._broken(Broken(event.task, error, begun=True))
            return
        end = reply.offset + len(reply.values)
        chunk.answered = end
        chunk.seconds += reply.worker_time.worked
        chunk.timed_out |= reply.worker_time.timed_out
        if event.final:
            del self._tasks[event.task]
            size, inline, latency = len(chunk.objects), self._executor.inline, getattr(self._executor, "latency", 0.0)
            self._flow.learn(size, chunk.seconds, timed_out=chunk.timed_out, inline=inline, latency=latency)
        if reply.values:
            batch = self._batch_of(chunk, reply)
            self.statistics.answered(reply.worker, reply.worker_time, batch)
            if self._sizing is not None:
                self._sizing.answered(reply.worker, reply.worker_time, len(batch.values))
            self._add(batch)
            if reply.worker_time.unreachable is not None:
                self._end_without(reply.worker_time.unreachable, batch)

    def _batch_of(self, chunk: Chunk, reply: Reply) -> OutcomeBatch:
        return batch_from_reply(chunk, reply, self._settle)

    def _end_without(self, unreachable: tuple[str, str], batch: OutcomeBatch) -> None:
        alias, reason = unreachable
        if self.fatal is None:
            self.fatal = DatabaseUnreachable(alias, reason)
            for outcome in batch.notable.values():
                if outcome.error is not None:  # the last one is of the object that had no connection
                    set_cause(self.fatal, outcome.error)
        self.halt(f"there was no connection to the database {alias!r}")

    def _died(self, event: Died) -> None:
        if event.worker is not None:
            self.statistics.died(event.worker)
        for task in event.queued:
            self._requeued.append(self._tasks.pop(task))
        if event.running is not None:
            self._resolve_crash(self._tasks.pop(event.running), event)
        if self.stopped is not None:
            self.halt(self.stopped)

    def _resolve_crash(self, chunk: Chunk, event: Died) -> None:
        analysis = CrashAnalysis(
            event,
            self._stage_modes(),
            timeout=self._options.timeout,
            settle=self._settle,
            exact=self._executor.blames_exactly,
        )
        known, requeued = analysis.outcomes(chunk)
        self._requeued += requeued
        for batch in known:
            self._add(batch)

    def _stage_modes(self) -> Sequence[StageMode]:
        return [StageMode(self._options.transaction, noted=True)]  # one stage: any note is its own

    def _broken(self, event: Broken) -> None:
        chunk = self._tasks.pop(event.task)
        status = Status.LOST if event.begun else Status.SKIPPED
        if self.stopped is None:
            self.fatal = event.error if self.fatal is None else self.fatal
        self._add(unanswered_batch(chunk.index + chunk.answered, chunk.rest(), status, event.error))
        self.halt(f"the executor lost a chunk: {repr_of(event.error)}")

    def _skip_unstarted(self) -> None:
        """No worker is left: the remaining tasks were never started."""
        for chunk in self._tasks.values():
            self._add(unanswered_batch(chunk.index + chunk.answered, chunk.rest(), Status.SKIPPED))
        self._tasks.clear()
        self.halt("no worker is left")

    def _lose_running(self, why: str) -> None:
        """End the tasks of an inline executor or a broken run as LOST: an exception came before their replies."""
        for task in [*self._tasks]:
            self._broken(Broken(task, RuntimeError(why), begun=True))

    def _add(self, batch: OutcomeBatch) -> None:
        self._ready.append(batch)
        self._ended += len(batch.values)
        if batch.notable:
            self._failed += sum(outcome.status in (Status.FAILED, Status.LOST) for outcome in batch.notable.values())
        if self.stopped is None and max_failures_reached(self._options.max_failures, self._failed, self._ended):
            self._stop_for_failures()

    def _stop_for_failures(self) -> None:
        self.halt(f"{self._failed} of {self._ended} objects failed (max_failures={self._options.max_failures!r})")
