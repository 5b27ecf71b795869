"""How fast the caller's own thread is, measured on the first objects of a run.

The objects are real work, not a rehearsal. `AutoEngine` takes the samples, and gives what they say to `policy`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from .._db.sqlite import WriteLockTimer
from .._reports.batches import OutcomeBatch
from ..executors import Event, SerialExecutor
from .policy import MIN_SAMPLE_SECONDS, LocalMeasurement

RECENT_SAMPLES = 8
"""Samples whose average is the present speed: enough to smooth noise, few enough to follow a change."""
WATCH_AFTER = MIN_SAMPLE_SECONDS / 4
"""Seconds of work after which locks are watched: before a decision, and not in runs that end long before one."""


class SamplingSerialExecutor(SerialExecutor):
    """A serial executor that sums up seconds and CPU seconds of its tasks until the next sample is taken."""

    measures = True
    """Whether it does that now."""
    ran = computed = 0.0
    locks: WriteLockTimer | None = None

    def wait(self, timeout: float | None) -> Sequence[Event]:
        if not self.measures:
            return super().wait(timeout)
        computed, started = time.process_time(), time.perf_counter()
        try:
            if self.locks is None:
                return super().wait(timeout)
            with self.locks.watching():
                return super().wait(timeout)
        finally:
            self.ran += time.perf_counter() - started
            self.computed += time.process_time() - computed


class Sample(NamedTuple):
    """Some objects that ran in the caller's thread."""

    objects: int
    took: float
    """Seconds in all, including the pulling of the input and the engine's own work."""
    ran: float
    """Seconds in which the objects ran."""
    computed: float
    """CPU seconds of this process meanwhile."""


class LocalSamples:
    """The last samples of work. The locks that it holds are measured once, before a decision, and not in the first
    sample, which connects."""

    def __init__(self) -> None:
        self._count = 0
        self.seconds = 0.0
        """Seconds that all samples took."""
        self._took = 0.0
        self._recent: deque[Sample] = deque(maxlen=RECENT_SAMPLES)
        self._locks = WriteLockTimer()
        self._watched = 0.0
        """Seconds in which objects ran and locks were watched."""
        self._locked: float | None = None
        self.fresh = False
        """Whether a sample has been added since the last `measured()`, and the locks are known."""
        self.last_batch: OutcomeBatch | None = None
        """The objects of the last sample and their values."""

    def take(
        self, batches: Sequence[OutcomeBatch], objects: int, took: float, executor: SamplingSerialExecutor
    ) -> None:
        """Add a step of the engine as a sample."""
        self._took += took
        if not objects:  # the step waited for a slow input
            return
        if self._count == 1:
            self._recent.clear()
        self._recent.append(Sample(objects, self._took, executor.ran, executor.computed))
        self._count += 1
        self.seconds += self._took
        self._watch_locks(executor)
        self._took = executor.ran = executor.computed = 0.0
        self.last_batch = batches[-1]
        self.fresh = self._locked is not None or self._count == 1

    def _watch_locks(self, executor: SamplingSerialExecutor) -> None:
        if executor.locks is self._locks:
            self._watched += executor.ran
            if self._sum("took") >= MIN_SAMPLE_SECONDS:
                self._locked = self._locks.held / max(self._watched, 1e-9)
        executor.locks = self._locks if self._locked is None and self.seconds >= WATCH_AFTER else None

    def _sum(self, name: str) -> float:
        return sum(float(getattr(sample, name)) for sample in self._recent)

    @property
    def per_object(self) -> float:
        """Seconds that the caller takes for one object in all."""
        return self._sum("took") / self._sum("objects")

    def measured(self, left: int) -> LocalMeasurement:
        """Give what the samples say, with the number of objects that are left."""
        self.fresh = False
        ran = self._sum("ran")
        return LocalMeasurement(
            samples=self._count,
            seconds=self.seconds,
            evidence=self._sum("took") if self._count > 1 else 0.0,
            per_object=ran / self._sum("objects"),
            computing=min(1.0, self._sum("computed") / ran) if ran else 1.0,
            locked=min(1.0, self._locked or 0.0),
            left=left,
        )
