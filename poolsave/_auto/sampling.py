"""How fast the caller's own thread is, measured on the first objects of a run, all of them real work."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from .._db.sqlite_lock_clock import WriteLockTimer
from .._reports.batches import OutcomeBatch
from ..executors import Event, SerialExecutor
from .policy import MIN_SAMPLE_SECONDS, LocalMeasurement

REMEMBERED = 8
"""Slices whose average says how fast the caller is now."""


class SamplingSerialExecutor(SerialExecutor):
    """Notes how long the objects of the last task took, and how much of it this process computed."""

    ran = computed = 0.0
    locks: WriteLockTimer | None = None

    def wait(self, timeout: float | None) -> Sequence[Event]:
        computed, began = time.process_time(), time.perf_counter()
        try:
            if self.locks is None:
                return super().wait(timeout)
            with self.locks.watching():
                return super().wait(timeout)
        finally:
            self.ran += time.perf_counter() - began
            self.computed += time.process_time() - computed


class Sample(NamedTuple):
    """Some objects that ran in the caller's thread."""

    objects: int
    took: float
    """Seconds, with the pulling of the input and all else that the caller has to do for them."""
    ran: float
    computed: float


class LocalSamples:
    """The last slices of work. What locks it holds is measured once, after the first slice, which connects."""

    def __init__(self) -> None:
        self._all = 0
        self.seconds = 0.0
        """How long all of them took."""
        self._took = 0.0
        self._recent: deque[Sample] = deque(maxlen=REMEMBERED)
        self._locks = WriteLockTimer()
        self._locked: float | None = None
        self.fresh = False
        """Whether one has been added since the last look."""
        self.sample: OutcomeBatch | None = None
        """Objects and what came of them."""

    def take(
        self, batches: Sequence[OutcomeBatch], objects: int, took: float, executor: SamplingSerialExecutor
    ) -> None:
        """Add what a step of the engine has done."""
        self._took += took
        if not objects:  # it has pulled a slow input
            return
        if self._all == 1:
            self._recent.clear()
        self._recent.append(Sample(objects, self._took, executor.ran, executor.computed))
        self._all += 1
        self.seconds += self._took
        self._took = executor.ran = executor.computed = 0.0
        self._watch_locks(executor)
        self.sample = batches[-1]
        self.fresh = True

    def _watch_locks(self, executor: SamplingSerialExecutor) -> None:
        if self._locked is None and self._all > 1 and self._sum("took") >= MIN_SAMPLE_SECONDS:
            self._locked = self._locks.held / max(self._sum("ran"), 1e-9)
        executor.locks = self._locks if self._locked is None else None

    def _sum(self, name: str) -> float:
        return sum(float(getattr(one, name)) for one in self._recent)

    @property
    def per_object(self) -> float:
        """Seconds that the caller takes for one object, with everything."""
        return self._sum("took") / self._sum("objects")

    def measured(self, left: int) -> LocalMeasurement:
        """What is known now."""
        self.fresh = False
        ran = self._sum("ran")
        return LocalMeasurement(
            slices=self._all,
            seconds=self.seconds,
            evidence=self._sum("took") if self._all > 1 else 0.0,
            per_object=ran / self._sum("objects"),
            computing=min(1.0, self._sum("computed") / ran) if ran else 1.0,
            locked=min(1.0, self._locked or 0.0),
            left=left,
        )
