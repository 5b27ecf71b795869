"""The loop that feeds an executor within the window, and turns its events into outcomes.

For `map`, `stream` and pipelines it runs in the caller's thread, for a block in a driver thread. It knows no Django.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from .._pickling.values import pickle_chunk
from .._reports.batches import OutcomeBatch, batch_from_reply, unanswered_batch
from .._reports.durable import DurableRun
from .._reports.statistics import Statistics
from .._reports.trials import Trial
from .._runtime.foreign_exceptions import repr_of, set_cause
from .._worker.replies import Reply
from ..errors import DatabaseUnreachable
from ..executors import Broken, Died, Event, Executor, Job, NotAdded, Ready, Replied, Retired, SetupFailed, Task
from ..executors.protocol import is_resizable
from ..options import AUTO, Options, WorkerRange, max_failures_reached, worker_range
from ..outcomes import Status
from ..throttles._reading import RunView
from .chunking import BATCHED_LARGEST, BATCHED_TARGET, LARGEST, TARGET, Chunk, FlowControl
from .crashes import CrashAnalysis, StageMode
from .sizing import WorkerSizing
from .sources import Source
from .throttling import ThrottleGate, ThrottleMeter


class Engine:
    """Runs all objects of a source. Call `start`, then `step` until `finished`, then `close`."""

    def __init__(
        self, executor: Executor, job: Job, options: Options, source: Source, gate: ThrottleGate | None = None
    ) -> None:
        """`gate`: one that shares its throttles with other engines, in place of one for those of the options."""
        self._executor = executor
        self._job = job
        self._options = options
        self._source = source
        self._settled: dict[int, Status] = {}
        self._tasks: dict[int, Chunk] = {}
        self._requeued: deque[Chunk] = deque()
        self._ready: list[OutcomeBatch] = []
        usual, largest = (BATCHED_TARGET, BATCHED_LARGEST) if options.batch_writes else (TARGET, LARGEST)
        target = getattr(executor, "target_seconds", usual)
        self._flow = FlowControl(options.chunksize, options.window, target=target, largest=largest)
        self._commits_once = options.transaction == "chunk"
        self._fed = self._ended = self._failed = self._last_task_id = 0
        self._entered = False
        self._sizing: WorkerSizing | None = None
        if options.throttle:
            run = RunView(databases=options.databases, busy=lambda: self.busy)
            gate = ThrottleGate(ThrottleMeter(options.throttle, run))
        self._gate = gate
        """What its throttles hold back; None: it has none."""
        self.meter: ThrottleMeter | None = None if gate is None else gate.meter
        """What its throttles say; None: it has none."""
        self.statistics = Statistics()
        self._undelivered = 0
        self._max_lead: int | None = None
        self.inside = False
        """Whether control is in a function that runs in this thread. Elsewhere an exception would drop outcomes."""
        self.fatal: BaseException | None = None
        """The error that makes it impossible to go on."""
        self.stopped: str | None = None
        """Why feeding stopped before the source was exhausted."""

    def start(self) -> None:
        """Start the workers: none for an empty source, and never more than chunks if the source knows its length."""
        if self._source.exhausted and not self._requeued:
            return
        if getattr(self._executor, "running", False):
            raise RuntimeError("this executor is running already: use an instance for one run at a time")
        if not self._executor.shares_memory:
            self._job.before_start()
        self._entered = True
        self._executor.start(self._job, workers=self._first_workers(), longest=self._flow.longest)
        self._sizing = None
        if is_resizable(self._executor) and self._limits.is_open:
            self._sizing = WorkerSizing(self._executor, self._job, self._limits, self.statistics)

    @cached_property
    def _limits(self) -> WorkerRange:
        return worker_range(self._options.workers)  # asks for the CPUs

    def _first_workers(self) -> int:
        if self._executor.inline:
            return 1
        workers, length = self._limits.least, self._source.remaining()
        if getattr(self._executor, "follows_cluster", False):
            workers = sys.maxsize if self._options.workers == AUTO else self._limits.most
        return workers if length is None else max(1, min(workers, -(-length // self._flow.shortest)))

    @property
    def inline(self) -> bool:
        """Whether objects run in the caller's thread, and so inside the caller's transactions."""
        return self._executor.inline

    @property
    def has_workers(self) -> bool:
        """Whether objects run elsewhere than in the caller's thread, now or later."""
        return not self._executor.inline

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
        return not (self._tasks or self._requeued or self._ready) and self._source.exhausted

    def step(self, *, undelivered: int = 0, max_lead: int | None = None) -> list[OutcomeBatch]:
        """Send as many chunks as there is room for, and return what has ended. Waits if there is nothing else to do.

        `undelivered` objects have ended but wait behind the engine; they count for the window. `max_lead` is the upper
        bound on objects in flight that the next stage of a pipeline sets.
        """
        self._undelivered, self._max_lead = undelivered, max_lead
        if self.stopped is not None:
            # In each step: to the queue of a block calls are added until the block is left.
            self._skip(self._source.give_up())
        self._feed()
        if self._ready or self.finished:
            return self._take_ready()
        events = self._wait(self._wait_time())
        for event in events:
            self._handle(event)
        if self.stopped is not None and self._executor.inline and not events:
            self._lose_running("an exception from elsewhere came before its outcome")
        if self.fatal is not None and not self._executor.workers:
            self._skip_unstarted()
        if self._sizing is not None and self.stopped is None and not (self._gate and self._gate.is_narrow):
            self._sizing.maybe_resize(ended=self._ended, left=self._source.remaining(), chunksize=self._flow.shortest)
        return self._take_ready()

    def _wait_time(self) -> float | None:
        """Seconds until there may be something to do besides events. None: there will be nothing."""
        gate = self._gate and self._active_gate()
        # Before the question for room: it may be time for the next objects a moment later.
        paced = None if gate is None else gate.pace_delay()
        if self._source.ready and self._has_room():
            return 0
        # After it: the throttles may have been asked for the answer.
        return None if gate is None else gate.wait_time(paced)

    def _wait(self, timeout: float | None) -> Sequence[Event]:
        gate = None if self._tasks else self._gate
        self.inside = self._executor.inline
        try:
            return gate.wait(self._executor, timeout) if gate and timeout else self._executor.wait(timeout)
        finally:
            self.inside = False

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
        if self._gate is not None:
            self._gate.meter.wake()

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
        if (gate := self._gate and self._active_gate()) is not None:
            slots = gate.slots(slots, self._executor.workers)
        return len(self._tasks) < slots

    def _active_gate(self) -> ThrottleGate | None:
        """Give the gate, if there is anything left that it could hold back."""
        is_over = self.stopped is not None or (self._source.exhausted and not self._requeued)
        return None if is_over else self._gate

    def _next_size(self) -> int:
        in_flight = self._fed - self._ended + self._undelivered
        workers, remaining = max(1, self._executor.workers), self._source.remaining()
        size = self._flow.next_size(in_flight=in_flight, remaining=remaining, workers=workers, max_lead=self._max_lead)
        return self._gate.size(size) if self._gate is not None and self._options.chunksize == "auto" else size

    def _feed(self) -> None:
        while self._has_slot():
            chunk = self._next_chunk()
            if chunk is None:
                return
            self._dispatch(chunk)

    def _next_chunk(self) -> Chunk | None:
        return self._requeued.popleft() if self._requeued else self._gather()

    def _gather(self) -> Chunk | None:
        if self._source.exhausted or not (size := self._next_size()):
            return None
        started = time.perf_counter()
        objects = self._source.gather(size, idle=len(self._tasks) < self._executor.workers)
        self.statistics.pulling += time.perf_counter() - started
        if objects is None:
            return None
        chunk = Chunk(self._fed, objects)
        self._fed += len(objects)
        if self._gate is not None:
            self._gate.sent(len(objects))
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
        sendable = [offset for offset in range(len(chunk.objects)) if offset not in errors]
        self._requeued.extendleft(reversed(chunk.parts(sendable)))
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
                self._end_with(event.error, f"a worker could not be set up: {repr_of(event.error)}")

    def _note_worker(self, event: Ready | NotAdded | Retired) -> None:
        if isinstance(event, Ready):
            self.statistics.started(event.worker, event.seconds)
        elif isinstance(event, Retired):
            self.statistics.retired(event.worker)
        if self._sizing is not None:
            self._sizing.note(event)

    def _replied(self, event: Replied) -> None:
        if (chunk := self._tasks.get(event.task)) is None:  # given up
            return
        try:
            reply = event.body if self._executor.shares_memory else Reply.from_bytes(event.body)
        except BaseException as error:  # without an outcome, the engine would wait for the task for ever
            self._broken(Broken(event.task, error, begun=True))
            return
        chunk.answered = reply.offset + len(reply.values)
        chunk.seconds += reply.worker_time.worked
        chunk.committing += reply.worker_time.committed if self._commits_once else 0.0
        chunk.timed_out |= reply.worker_time.timed_out
        chunk.rows += 0 if reply.worker_time.batching is None else reply.worker_time.batching.rows
        if event.final:
            del self._tasks[event.task]
            if not self._source.exhausted:
                size, inline = len(chunk.objects), self._executor.inline
                latency = getattr(self._executor, "latency", 0.0)
                self._flow.learn(
                    size, chunk.seconds, timed_out=chunk.timed_out, inline=inline, latency=latency,
                    committing=chunk.committing, rows=chunk.rows,
                )  # fmt: skip
        if reply.values:
            batch = self._batch_of(chunk, reply)
            self.statistics.answered(reply.worker, reply.worker_time, batch)
            if self._sizing is not None:
                self._sizing.answered(reply.worker, reply.worker_time, len(batch.values))
            self._add(batch)
            if reply.worker_time.unreachable is not None:
                self._end_without(reply.worker_time.unreachable, batch)

    def _settle(self, note: int) -> Status:
        if note not in self._settled:
            self._settled[note] = self._job.settle(note)
        return self._settled[note]

    def _batch_of(self, chunk: Chunk, reply: Reply) -> OutcomeBatch:
        return batch_from_reply(reply, chunk.index, chunk.objects, self._settle)

    def _end_without(self, unreachable: tuple[str, str], batch: OutcomeBatch) -> None:
        error = DatabaseUnreachable(*unreachable)
        causes = [outcome.error for outcome in batch.notable.values() if outcome.error is not None]
        if causes:
            set_cause(error, causes[-1])  # of the object that had no connection
        self._end_with(error, f"there was no connection to the database {error.alias!r}")

    def _end_with(self, error: BaseException, reason: str) -> None:
        """Feed no more, and have the run raise an error at its end: the first one, if there are several."""
        self.fatal = error if self.fatal is None else self.fatal
        self.halt(reason)

    def _died(self, event: Died) -> None:
        if event.worker is not None:
            self.statistics.died(event.worker)
        self._requeued += [self._tasks.pop(task) for task in event.queued]
        if event.running is not None:
            self._resolve_crash(self._tasks.pop(event.running), event)
        if self.stopped is not None:
            self.halt(self.stopped)  # what was requeued just now has to be skipped, too

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
