"""The one loop that feeds an executor and turns its events into outcomes, within the window.

For `map` and `stream` it runs in the caller's thread; for a block in one driver thread. Nothing here knows Django.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import Any

from .._pickling.values import pickle_chunk
from .._reports.batches import OutcomeBatch, unanswered_batch
from .._reports.statistics import Statistics
from .._runtime.foreign_exceptions import repr_of
from .._worker.replies import Reply
from ..executors import Broken, Died, Event, Executor, Job, Ready, Replied, SetupFailed, Task
from ..options import Options
from ..outcomes import Status
from .chunking import FlowControl
from .crashes import Chunk, CrashAnalysis, StageMode, batch_from_reply, max_failures_reached, split_around
from .sources import Source


class Engine:
    """Runs everything that a source gives. Call `start`, then `step` until `finished`, then `close`."""

    def __init__(self, executor: Executor, job: Job, options: Options, source: Source) -> None:
        self._executor = executor
        self._job = job
        self._options = options
        self._source = source
        self._settle = cache(job.settle)
        self._tasks: dict[int, Chunk] = {}
        self._again: deque[Chunk] = deque()
        self._aside: list[OutcomeBatch] = []
        self._pacing = FlowControl(options.chunksize, options.window)
        self._fed = 0
        self._ended = 0
        self._failed = 0
        self._tickets = 0
        self._entered = False
        self.statistics = Statistics()
        self.held_back = 0
        """Objects that have ended but not yet left for the caller (ordered streams); they count for the window."""
        self.bound: int | None = None
        """The most objects in flight that whoever they are for has use for now; None: any number."""
        self.fatal: BaseException | None = None
        """What makes it impossible to go on."""
        self.stopped: str | None = None
        """Why feeding stopped before the source was exhausted."""

    def start(self) -> None:
        """Start the workers: never more than there are chunks, if the source knows its length, and none for nothing."""
        if self._source.exhausted and not self._again:
            return
        workers = self._options.workers
        length = self._source.remaining()
        if length is not None:
            size = 1 if self._options.chunksize == "auto" else self._options.chunksize
            workers = max(1, min(workers, -(-length // size)))
        if getattr(self._executor, "running", False):
            raise RuntimeError("this executor is running already: use an instance for one run at a time")
        if not self._executor.shares_memory:
            self._job.before_start()
        self._entered = True
        self._executor.start(self._job, workers=workers, longest=self._pacing.longest)

    @property
    def finished(self) -> bool:
        """Whether every object that was fed has ended and no more will be fed."""
        return self._source.exhausted and not (self._tasks or self._again or self._aside)

    def step(self) -> list[OutcomeBatch]:
        """Feed what there is room for, and give what has ended, waiting for it if there is nothing else to do."""
        if self.stopped is not None:
            self._skip(self._source.give_up())
        self._feed()
        if self._aside:
            return self._take_aside()
        if self.finished:
            return []
        events = self._executor.wait(0 if self._source.ready and self._has_room() else None)
        for event in events:
            self._handle(event)
        if self.stopped is not None and self._executor.inline and not events:
            self._lose("an exception from elsewhere came before its outcome")
        if self.fatal is not None and not self._executor.workers:
            self._abandon()
        return self._take_aside()

    def _take_aside(self) -> list[OutcomeBatch]:
        batches, self._aside = self._aside, []
        return batches

    def halt(self, reason: str) -> None:
        """Feed no more: what runs is finished, what has not started is skipped."""
        if self.stopped is None and not self.finished:
            self.stopped = reason
            if self._entered:
                self._executor.halt()
        self._skip(self._source.give_up())
        while self._again:
            chunk = self._again.popleft()
            self._end(unanswered_batch(chunk.index, chunk.objects, Status.SKIPPED))

    def kill(self) -> None:
        """End what runs, at once where that is possible."""
        self._executor.kill()

    def close(self) -> None:
        """Stop the executor; nothing of it is left behind."""
        if self._entered:
            self._executor.stop()

    def lose_rest(self) -> list[OutcomeBatch]:
        """After `close`: end what has not ended, because the run could not go on until then."""
        self._lose("the run broke down before its outcome was known")
        return self._take_aside()

    def _skip(self, objects: Sequence[Any]) -> None:
        if objects:
            self._end(unanswered_batch(self._fed, objects, Status.SKIPPED))
            self._fed += len(objects)

    def _has_room(self) -> bool:
        # What is to run again has its place in the window already.
        return self._has_slot() and (bool(self._again) or self._next_size() > 0)

    def _has_slot(self) -> bool:
        return len(self._tasks) < self._executor.workers * self._pacing.depth

    def _next_size(self) -> int:
        in_flight = self._fed - self._ended + self.held_back
        workers, remaining = max(1, self._executor.workers), self._source.remaining()
        return self._pacing.next_size(in_flight=in_flight, remaining=remaining, workers=workers, bound=self.bound)

    def _feed(self) -> None:
        while self._has_slot():
            chunk = self._again.popleft() if self._again else self._gather()
            if chunk is None:
                return
            self._dispatch(chunk)

    def _gather(self) -> Chunk | None:
        if self._source.exhausted:
            return None
        size = self._next_size()
        if not size:
            return None
        began = time.perf_counter()
        objects = self._source.gather(size, idle=len(self._tasks) < self._executor.workers)
        self.statistics.pulling += time.perf_counter() - began
        if objects is None:
            return None
        chunk = Chunk(self._fed, objects)
        self._fed += len(objects)
        return chunk

    def _dispatch(self, chunk: Chunk) -> None:
        if self._executor.shares_memory:
            self._submit(chunk, chunk.objects)
            return
        try:
            payload, errors = pickle_chunk(chunk.objects)
        except BaseException:  # SystemExit out of an object's own pickling: the run ends, and nothing of it has begun
            self._again.appendleft(chunk)
            raise
        if errors:
            self._cannot_send(chunk, errors)
        else:
            self._submit(chunk, payload)

    def _cannot_send(self, chunk: Chunk, errors: dict[int, BaseException]) -> None:
        for part in split_around(chunk, errors):
            self._again.appendleft(part)
        for offset, error in errors.items():
            self._end(unanswered_batch(chunk.index + offset, [chunk.objects[offset]], Status.FAILED, error))

    def _submit(self, chunk: Chunk, payload: Any) -> None:
        self._tickets += 1
        self._tasks[self._tickets] = chunk
        try:
            self._executor.submit(Task(self._tickets, payload, len(chunk.objects)))
        except BaseException as error:  # an executor of the user's may have taken it all the same
            self._broken(Broken(self._tickets, error, begun=True))

    def _handle(self, event: Event) -> None:
        match event:
            case Replied():
                self._replied(event)
            case Ready():
                self.statistics.started(event.worker, event.seconds)
            case Died():
                self._died(event)
            case Broken():
                self._broken(event)
            case SetupFailed():
                self.fatal = event.error if self.fatal is None else self.fatal
                self.halt(f"a worker could not be set up: {repr_of(event.error)}")

    def _replied(self, event: Replied) -> None:
        chunk = self._tasks.get(event.task)
        if chunk is None:  # given up
            return
        try:
            reply = event.body if self._executor.shares_memory else Reply.from_bytes(event.body)
        except BaseException as error:  # what is not answered for would be waited for without an end
            self._broken(Broken(event.task, error, begun=True))
            return
        end = reply.offset + len(reply.values)
        chunk.answered = end
        chunk.seconds += reply.spent.worked
        chunk.timed_out |= reply.spent.timed_out
        if event.final:
            del self._tasks[event.task]
            self._learn(chunk)
        if reply.values:
            batch = batch_from_reply(chunk, reply, self._settle)
            self.statistics.answered(reply.worker, reply.spent, batch)
            self._end(batch)

    def _learn(self, chunk: Chunk) -> None:
        inline = self._executor.inline
        self._pacing.learn(len(chunk.objects), chunk.seconds, timed_out=chunk.timed_out, inline=inline)

    def _died(self, event: Died) -> None:
        if event.worker is not None:
            self.statistics.died(event.worker)
        for task in event.queued:
            self._again.append(self._tasks.pop(task))
        if event.running is not None:
            self._judge(self._tasks.pop(event.running), event)
        if self.stopped is not None:
            self.halt(self.stopped)

    def _judge(self, chunk: Chunk, event: Died) -> None:
        analysis = CrashAnalysis(
            event,
            self._stage_modes(),
            timeout=self._options.timeout,
            settle=self._settle,
            exact=self._executor.blames_exactly,
        )
        known, again = analysis.outcomes(chunk)
        self._again += again
        for batch in known:
            self._end(batch)

    def _stage_modes(self) -> Sequence[StageMode]:
        return [StageMode(self._options.transaction, noted=True)]  # there is a note only if it is this stage's

    def _broken(self, event: Broken) -> None:
        chunk = self._tasks.pop(event.task)
        status = Status.LOST if event.begun else Status.SKIPPED
        if self.stopped is None:
            self.fatal = event.error if self.fatal is None else self.fatal
        self._end(unanswered_batch(chunk.index + chunk.answered, chunk.rest(), status, event.error))
        self.halt(f"the executor lost a chunk: {repr_of(event.error)}")

    def _abandon(self) -> None:
        """No worker is left: nothing that is still here was started."""
        for chunk in self._tasks.values():
            self._end(unanswered_batch(chunk.index + chunk.answered, chunk.rest(), Status.SKIPPED))
        self._tasks.clear()
        self.halt("no worker is left")

    def _lose(self, why: str) -> None:
        """What ran in this thread has told nothing: a signal's handler raised before it could."""
        for task in [*self._tasks]:
            self._broken(Broken(task, RuntimeError(why), begun=True))

    def _end(self, batch: OutcomeBatch) -> None:
        self._aside.append(batch)
        self._ended += len(batch.values)
        if batch.notable:
            self._failed += sum(outcome.status in (Status.FAILED, Status.LOST) for outcome in batch.notable.values())
        if self.stopped is None and max_failures_reached(self._options.max_failures, self._failed, self._ended):
            self.halt(f"{self._failed} of {self._ended} objects failed (max_failures={self._options.max_failures!r})")
