"""The engine of `executor="auto"`: it starts in the caller's thread, and switches to a pool and back between chunks.

A `Run` makes it in place of an `Engine`. It measures and switches; `policy` decides. It switches only while nothing is
in flight, so that every object runs once, in the caller's thread or in a worker.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from .._engine.chunking import Chunk
from .._engine.engine import Engine
from .._engine.sources import Source
from .._reports.batches import OutcomeBatch
from .._reports.trials import Trial
from .._runtime.foreign_exceptions import repr_of
from ..errors import PoolsaveError
from ..executors import Died, Event, Executor, Job
from ..options import AUTO, Options, available_cpus
from .policy import (
    DEFAULT_START_SECONDS,
    MAX_WATCH_SECONDS,
    MIN_SAMPLE_SECONDS,
    PoolEstimate,
    should_keep_pool,
    should_start_pool,
)
from .sampling import LocalSamples, SamplingSerialExecutor

_start_seconds: dict[str, float] = {}
"""Seconds until a pool of this process gives its first answer, by start method: an average that favours the latest."""


class Pools(Protocol):
    """What an AutoEngine asks of the pools that it may switch to."""

    def start_method(self) -> str:
        """How a pool would be started now."""
        ...

    def obstacle(self, sample: OutcomeBatch | None) -> str | None:
        """Why there can be no pool now, or none for such objects and values."""

    def make(self) -> tuple[Executor, Job]:
        """Make a pool, which is not started, and its job."""
        ...


class AutoEngine(Engine):
    """An Engine that decides before each step where the next objects run."""

    def __init__(
        self, pools: Pools, executor: SamplingSerialExecutor, job: Job, options: Options, source: Source
    ) -> None:
        super().__init__(executor, job, options, source)
        self._pools = pools
        self._local: tuple[SamplingSerialExecutor, Job] = executor, job
        self._is_local = True
        """Whether the caller's thread runs the objects now."""
        self._samples = LocalSamples()
        is_alone = options.workers != AUTO and self._limits.most == 1
        self._final_reason = "one worker would be no faster than the caller" if is_alone else None
        """Why the executor is not changed again in this run. None: it may still change."""
        self._trials: list[Trial] = []
        self._verdict = self._final_reason or "it was over before a pool could have been worth it"
        self._draining = False
        """Whether the pool takes no more chunks, and the caller's thread goes on when those in flight have ended."""
        self._worker_has_died = False
        self._given_up = 0
        self._given_up_at = 0.0
        self._start_method: str | None = None
        self._started_at = 0.0
        self._reset_counts()

    def _reset_counts(self) -> None:
        self._objects = 0
        self._seconds = 0.0
        self._baseline: tuple[int, float] | None = None
        """Objects and seconds of the pool when its measurement starts. None: not yet."""
        self._answered_workers: set[object] = set()

    @property
    def has_workers(self) -> bool:
        """True: there may be some later."""
        return True

    def trials(self) -> tuple[Trial, ...]:
        """Give the executors of the run so far, in their order."""
        return (*self._trials, self._trial())

    def _trial(self) -> Trial:
        name = "serial" if self._is_local else "process"
        return Trial(executor=name, objects=self._objects, seconds=self._seconds, verdict=self._verdict)

    def step(self, *, undelivered: int = 0, max_lead: int | None = None) -> list[OutcomeBatch]:
        """Do a step of the engine, after a switch if one is worth it."""
        if self.stopped is None and (self._draining or not self._source.exhausted):
            # Before the step, not after it: a start may raise, and the batches of the last step have left by now.
            self._maybe_switch()
        started, ended_before = time.perf_counter() - self._idled(), self._ended
        batches = super().step(undelivered=undelivered, max_lead=max_lead)
        seconds = time.perf_counter() - self._idled() - started
        ended = self._ended - ended_before
        self._objects += ended
        self._seconds += seconds
        if self._is_local:
            if self._local[0].measures:
                self._samples.take(batches, ended, seconds, self._local[0])
        elif ended and self._baseline is None:
            self._note_answers(batches)
        return batches

    def _wait(self, timeout: float | None) -> Sequence[Event]:
        # What runs last decides nothing, and to read the CPU clock takes longer than most of what the engine does.
        self._local[0].measures = self._final_reason is None and not self._source.exhausted
        return super()._wait(timeout)

    def _idled(self) -> float:
        return 0.0 if self._gate is None else self._gate.idled

    def _maybe_switch(self) -> None:
        if self._draining:
            if not self._tasks:
                self._draining = False
                self._switch_to(*self._local)
        elif self._final_reason is None:
            if self._is_local and not self._tasks:
                self._maybe_start_pool()
            elif not self._is_local and self._baseline is not None:
                self._maybe_give_up_pool(*self._baseline)

    def _maybe_start_pool(self) -> None:
        if not self._samples.fresh or self._samples.seconds < MIN_SAMPLE_SECONDS:
            return
        left = self._source.remaining()
        if left == 0:
            return
        work = self._samples.measured(self._ended if left is None else left)
        start, self._verdict = should_start_pool(work, self._pool_estimate())
        if start:
            self._switch_to_pool()

    def _pool_estimate(self) -> PoolEstimate:
        if self._start_method is None:
            self._start_method = self._pools.start_method()
        return PoolEstimate(
            workers=self._limits.least if self._is_local else self._executor.workers,
            most=self._limits.most,
            cpus=available_cpus(),
            start=_expected_start_seconds(self._start_method),
            given_up=self._given_up,
            since=time.perf_counter() - self._given_up_at,
        )

    def _switch_to_pool(self) -> None:
        reason = self._pools.obstacle(self._samples.last_batch)
        if reason is None:
            executor, job = self._pools.make()
            self._started_at = time.perf_counter()
            try:
                self._switch_to(executor, job)
            except PoolsaveError as error:  # for example, the function cannot be pickled
                reason = str(error)
            except Exception as error:  # a hook raised it; the run raises it with its report
                self._end_with(error, f"a pool could not be started: {repr_of(error)}")
        if reason is not None:
            self._final_reason = self._verdict = reason

    def _switch_to(self, executor: Executor, job: Job) -> None:
        """Take another executor, while nothing is in flight. If it cannot be started, nothing changes."""
        assert not self._tasks
        self._flow.prefetch = 1
        previous = self._executor, self._job
        trial = self._trial()
        self._executor, self._job = executor, job
        self._entered = False
        try:
            self.start()
        except BaseException:
            if self._entered:
                executor.stop()
            self._executor, self._job = previous
            self._entered = True
            raise
        self._is_local = executor is self._local[0]
        self._trials.append(trial)
        self._reset_counts()
        previous[0].stop()
        self.statistics.left()

    def _note_answers(self, batches: Sequence[OutcomeBatch]) -> None:
        """Start the measurement when every worker has answered, or after a time: workers start and connect first."""
        assert self._start_method is not None
        if not self._answered_workers:
            seconds = max(0.0, time.perf_counter() - self._started_at - sum(batches[0].seconds))
            # The mean of old and new: one slow start must not keep all later runs from a pool.
            _start_seconds[self._start_method] = (seconds + _expected_start_seconds(self._start_method)) / 2
        self._answered_workers.update(batch.worker for batch in batches if batch.worker is not None)
        if len(self._answered_workers) >= self._executor.workers or self._seconds > MAX_WATCH_SECONDS:
            self._baseline = self._objects, self._seconds

    def _maybe_give_up_pool(self, objects: int, seconds: float) -> None:
        keep, self._verdict = should_keep_pool(
            self._samples.per_object,
            self._objects - objects,
            self._seconds - seconds,
            left=self._source.remaining(),
            pool=self._pool_estimate(),
        )
        if keep:
            self._final_reason = self._verdict
        elif keep is not None:
            self._give_up()

    def _give_up(self) -> None:
        self._draining = True
        self._given_up += 1
        self._given_up_at = time.perf_counter()
        self._samples = LocalSamples()
        self._executor.wake()  # if nothing is in flight, nothing else ends the next wait

    def _has_slot(self) -> bool:
        return not self._draining and super()._has_slot()

    def _cannot_send(self, chunk: Chunk, errors: dict[int, BaseException]) -> None:
        if self._worker_has_died:
            super()._cannot_send(chunk, errors)
            return
        # The object has not failed: in the caller's thread nothing needs to be pickled.
        self._requeued.appendleft(chunk)
        self._give_up()
        error = next(iter(errors.values()))
        self._final_reason = self._verdict = f"an object cannot be sent to another process: {error}"

    def _died(self, event: Died) -> None:
        # Stay in the pool: what ends a worker might end the caller, too.
        self._draining = False
        self._worker_has_died = True
        self._final_reason = self._verdict = f"a worker died: {event.error}"
        super()._died(event)


def _expected_start_seconds(method: str) -> float:
    return _start_seconds.get(method, DEFAULT_START_SECONDS[method])
