"""The engine of `executor="auto"`: it starts in the caller's thread, and goes over to a pool and back between chunks.

It goes over only while nothing is on its way, so that every object is run once, by the one or the other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache

from .._engine.crashes import Chunk
from .._engine.engine import Engine
from .._engine.sources import Source
from .._reports.batches import OutcomeBatch
from .._reports.trials import Trial
from .._runs.executor_choice import expected_start_method, make_pool, why_no_processes, why_not_picklable
from .._runs.preparation import WorkSpec
from .._runtime.foreign_exceptions import repr_of
from .._worker.job import WorkerJob
from ..errors import PoolsaveError
from ..executors import Died, Executor, Job
from ..options import Options, available_cpus
from .policy import (
    DEFAULT_START_SECONDS,
    LONGEST,
    MIN_SAMPLE_SECONDS,
    PoolEstimate,
    should_keep_pool,
    should_start_pool,
)
from .sampling import LocalSamples, SamplingSerialExecutor

_starts: dict[str, float] = {}
"""Seconds until pools of this process worked, by start method; the last ones count most."""


class AutoEngine(Engine):
    """Decides before each step where the next objects are run."""

    def __init__(
        self, work: WorkSpec, executor: SamplingSerialExecutor, job: WorkerJob, options: Options, source: Source
    ) -> None:
        super().__init__(executor, job, options, source)
        self._work = work
        self._home = executor, job
        self._slices = LocalSamples()
        self._stays = "one worker would be no faster than the caller" if options.workers == 1 else None
        """Why there is no use in looking any further, until the end of the run."""
        self._trials: list[Trial] = []
        self._verdict = self._stays or "it was over before a pool could have been worth it"
        self._leaving = False
        self._deadly = False
        """Whether a worker has died."""
        self._given_up = 0
        self._given_up_at = 0.0
        self._method: str | None = None
        self._started_at = 0.0
        self._start_over()

    def _start_over(self) -> None:
        self._objects = 0
        self._seconds = 0.0
        self._since: tuple[int, float] | None = None
        """Objects and seconds of the pool's before it is measured."""
        self._seen: set[object] = set()
        """Workers that have answered."""

    def trials(self) -> tuple[Trial, ...]:
        """What the run was worked off by so far."""
        return (*self._trials, self._trial())

    def _trial(self) -> Trial:
        name = "serial" if self._at_home else "process"
        return Trial(executor=name, objects=self._objects, seconds=self._seconds, verdict=self._verdict)

    @property
    def _at_home(self) -> bool:
        return self._executor is self._home[0]

    def step(self) -> list[OutcomeBatch]:
        """As the engine does, but where it seems best."""
        if self.stopped is None and (self._leaving or not self._source.exhausted):
            # Not after the step: what has ended is with the caller by now, whatever a start may raise.
            self._look()
        began = time.perf_counter()
        batches = super().step()
        took = time.perf_counter() - began
        ended = sum(len(batch.values) for batch in batches)
        self._objects += ended
        self._seconds += took
        if self._at_home:
            self._slices.take(batches, ended, took, self._home[0])
        elif ended and self._since is None:
            self._answered(batches)
        return batches

    def _look(self) -> None:
        if self._leaving:
            if not self._tasks:
                self._leaving = False
                self._go_over(*self._home)
        elif self._stays is None:
            if self._at_home and not self._tasks:
                self._look_at_home()
            elif not self._at_home and self._since is not None:
                self._look_at_pool(*self._since)

    def _look_at_home(self) -> None:
        if not self._slices.fresh or self._slices.seconds < MIN_SAMPLE_SECONDS:
            return
        left = self._source.remaining()
        if left == 0:
            return
        work = self._slices.measured(self._ended if left is None else left)
        go, self._verdict = should_start_pool(work, self._ride())
        if go:
            self._go_over_to_pool()

    def _ride(self) -> PoolEstimate:
        if self._method is None:
            self._method = expected_start_method(self._options)
        return PoolEstimate(
            workers=self._options.workers,
            cpus=available_cpus(),
            start=_starts.get(self._method, DEFAULT_START_SECONDS[self._method]),
            given_up=self._given_up,
            since=time.perf_counter() - self._given_up_at,
        )

    def _go_over_to_pool(self) -> None:
        why = why_no_processes(self._work, self._options) or why_not_picklable(self._slices.sample)
        if why is None:
            executor, job = make_pool(self._work, self._options)
            job.carried = self._home[1].carried
            self._started_at = time.perf_counter()
            try:
                self._go_over(executor, job)
            except PoolsaveError as error:  # the function cannot be pickled, say
                why = str(error)
            except Exception as error:  # a hook's: raised with the report of what has run by now
                self.fatal = error
                self.halt(f"a pool could not be started: {repr_of(error)}")
        if why is not None:
            self._stays = self._verdict = why

    def _go_over(self, executor: Executor, job: Job) -> None:
        """Take another executor, while nothing is on its way; if it cannot be started, nothing has changed."""
        assert not self._tasks
        self._pacing.depth = 1
        before = self._executor, self._job, self._settle
        trial = self._trial()
        self._executor, self._job, self._settle = executor, job, cache(job.settle)
        self._entered = False
        try:
            self.start()
        except BaseException:
            if self._entered:
                executor.stop()
            self._executor, self._job, self._settle = before
            self._entered = True
            raise
        self._trials.append(trial)
        self._start_over()
        before[0].stop()
        self.statistics.left()

    def _answered(self, batches: Sequence[OutcomeBatch]) -> None:
        """Begin to measure when every worker has answered, or enough time has gone by: they start and connect first."""
        assert self._method is not None
        if not self._seen:
            took = max(0.0, time.perf_counter() - self._started_at - sum(batches[0].seconds))
            # Half of each: one start at a bad moment must not keep all later runs from a pool.
            _starts[self._method] = (took + _starts.get(self._method, DEFAULT_START_SECONDS[self._method])) / 2
        self._seen.update(batch.worker for batch in batches if batch.worker is not None)
        if len(self._seen) >= self._executor.workers or self._seconds > LONGEST:
            self._since = self._objects, self._seconds

    def _look_at_pool(self, objects: int, seconds: float) -> None:
        keep, self._verdict = should_keep_pool(
            self._slices.per_object,
            self._objects - objects,
            self._seconds - seconds,
            left=self._source.remaining(),
            ride=self._ride(),
        )
        if keep:
            self._stays = self._verdict
        elif keep is not None:
            self._give_up()

    def _give_up(self) -> None:
        self._leaving = True
        self._given_up += 1
        self._given_up_at = time.perf_counter()
        self._slices = LocalSamples()
        self._executor.wake()  # there may be nothing on its way, and then nothing else would end the next wait

    def _has_slot(self) -> bool:
        return not self._leaving and super()._has_slot()

    def _cannot_send(self, chunk: Chunk, errors: dict[int, BaseException]) -> None:
        if self._deadly:
            super()._cannot_send(chunk, errors)
            return
        # Not its failure: in the caller's thread nothing needs to be pickled.
        self._again.appendleft(chunk)
        self._give_up()
        self._stays = self._verdict = f"an object cannot be sent to another process: {next(iter(errors.values()))}"

    def _died(self, event: Died) -> None:
        # What ends a worker might end the caller, too.
        self._leaving = False
        self._deadly = True
        self._stays = self._verdict = f"a worker died: {event.error}"
        super()._died(event)
