"""Adds workers to a run and retires some, as `WorkerPolicy` says. An Engine makes it if the number may change.

replies -> answered(): sums of a window -> WorkerPolicy.after() -> Executor.resize()
                                                 most: Job.room_for_workers(), asked before each growth
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from .._reports.statistics import Statistics
from .._worker.replies import WorkerTime
from ..executors import Job, NotAdded, Ready, Resizable, Retired
from ..options import WorkerRange, available_cpus
from .worker_policy import Window, WorkerPolicy

WARM_UP = 0.05
"""Seconds of work of each new worker that do not count, unless they are a small part of a long chunk: it connects, and
copies memory after a fork."""
FIRST_SECONDS, MIN_SECONDS = 0.04, 0.12
"""Seconds of each worker that a window has at least: several replies, which come every 0.02 s or with each chunk. The
first is shorter: how much workers compute is soon known, and each moment with too few of them is lost."""
MIN_OBJECTS = 2
"""Objects of each worker that a window has at least."""


class WorkerSizing:
    """Measures the workers of a run, window by window, and changes their number."""

    def __init__(self, executor: Resizable, job: Job, limits: WorkerRange, statistics: Statistics) -> None:
        self._executor = executor
        self._job = job
        self._statistics = statistics
        self._reported = statistics.first_workers = workers = executor.workers
        self._changed_at = 0
        self._share_one_lock = executor.shares_memory and getattr(sys, "_is_gil_enabled", lambda: True)()
        """Whether only one of them can compute at once."""
        self._policy = WorkerPolicy(
            workers=workers, least=min(limits.least, workers), most=limits.most,
            cpus=1 if self._share_one_lock else available_cpus(), in_turn=self._share_one_lock,
        )  # fmt: skip
        self._warmed_up: dict[object, float] = {}
        """By worker, the seconds of its work that did not count."""
        self._start = 0.0
        self._overloaded = False
        self._seconds = FIRST_SECONDS
        self._clear()

    def _clear(self) -> None:
        self._answered: set[object] = set()
        self._objects = 0
        self._waited = self._worked = self._computed = self._in_line = 0.0

    def note(self, event: Ready | NotAdded | Retired) -> None:
        """Take note that a worker has started, or could not be added."""
        if isinstance(event, Ready):
            self._start = event.seconds if not self._start else (self._start + event.seconds) / 2
        elif isinstance(event, NotAdded):
            self.refused()

    def answered(self, worker: object, spent: WorkerTime, objects: int) -> None:
        """Add a worker's answer for some objects."""
        self._overloaded |= spent.overloaded or spent.timed_out
        warmed_up = self._warmed_up.get(worker, 0.0)
        if warmed_up < WARM_UP:
            self._warmed_up[worker] = warmed_up + spent.worked
            if spent.worked < 2 * WARM_UP:
                return
        else:
            self._waited += spent.waited
        self._answered.add(worker)
        self._objects += objects
        self._worked += spent.worked
        if self._share_one_lock:  # which a thread that stands in line keeps from the others
            self._computed += spent.computed + spent.in_line
        else:
            self._computed += spent.computed
            self._in_line += spent.in_line

    def refused(self) -> None:
        """Note that a worker could not be added. The run goes on with the others."""
        self._policy = self._policy.refused(time.monotonic(), self._executor.workers + self._executor.joining)

    def maybe_resize(self, *, ended: int, left: int | None, chunksize: int) -> None:
        """Change the number of workers, if a window is complete and says so. `ended`: objects that have ended so far.

        `left`: objects that are still to come, or None. `chunksize`: the least that a chunk has.
        """
        if self._executor.joining:
            return
        self._report()
        if left == 0 or not (self._is_complete or self._overloaded):
            return
        before = self._policy
        after = before.after(self._window(ended if left is None else left, chunksize))
        if after.workers > before.workers:
            after = self._with_room(before, after)
        self._policy = after
        self._overloaded = False
        self._seconds = MIN_SECONDS
        self._clear()
        if after.workers != before.workers:
            self._resize(before, ended)

    @property
    def _is_complete(self) -> bool:
        workers = self._executor.workers
        return (
            self._waited + self._worked >= self._seconds * workers
            and self._objects >= MIN_OBJECTS * workers
            and len(self._answered) >= workers
        )

    def _window(self, left: int, chunksize: int) -> Window:
        worked, spent = max(self._worked, 1e-9), max(self._waited + self._worked, 1e-9)
        return Window(
            now=time.monotonic(),
            rate=self._executor.workers * self._objects / spent,
            computing=min(1.0, self._computed / worked),
            in_line=min(1.0, self._in_line / worked),
            busy=self._worked / spent,
            left=left,
            chunks=-(-left // chunksize),
            start=self._start,
            overloaded=self._overloaded,
        )

    def _with_room(self, before: WorkerPolicy, after: WorkerPolicy) -> WorkerPolicy:
        """Bound a growth by the connections that the servers have left."""
        room = self._job.room_for_workers()
        if room is None or before.workers + room >= after.workers:
            return after
        if room < 1:
            return before.refused(time.monotonic(), before.workers)
        return replace(after, workers=before.workers + room)

    def _resize(self, before: WorkerPolicy, ended: int) -> None:
        self._executor.resize(self._policy.workers)
        reached = self._executor.workers + self._executor.joining
        if reached == before.workers:  # nothing can be started now, for example beside another thread
            self._policy = before.refused(time.monotonic(), reached)
        else:
            self._policy = replace(self._policy, workers=reached)
            self._changed_at = ended

    def _report(self) -> None:
        """Note the last change, once all workers that it has added are set up."""
        if self._executor.workers != self._reported:
            self._reported = self._executor.workers
            self._statistics.resized(self._reported, self._changed_at, self._policy.reason)
