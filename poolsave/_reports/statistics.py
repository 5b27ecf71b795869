"""How the workers of a run spent their time, which objects took longest, and what to change.

The engine reports events to `Statistics`, and a Report shows it. Nothing here influences a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from heapq import nlargest
from itertools import count
from operator import itemgetter
from typing import Any

from .._db.write_behind.pacing import Batching
from .._worker.replies import WorkerTime
from .batches import OutcomeBatch

SLOWEST_SHOWN = 5
"""Number of objects that are listed as the slowest."""
SLOW_SECONDS = 0.002
"""Seconds that an object must take to replace another one in that list. Shorter ones are not compared."""
MIN_BUSY_SHARE = 0.8
"""Share of their time for which workers should be busy; below it there is a hint. mpire uses the same value."""
MIN_SECONDS_FOR_HINT = 1.0
"""Seconds of a run below which there is no hint: the start of workers takes much of a shorter one in any case."""
MIN_OBJECTS_FOR_HINT = 100
"""Objects per worker below which waiting in between is no reason for a hint: "auto" is still finding the size of a
chunk, so it says nothing of a longer run."""


@dataclass(frozen=True, slots=True)
class SlowObject:
    """One of the objects that took longest."""

    seconds: float
    index: int
    item: Any


@dataclass(slots=True)
class WorkerTimes:
    """How one worker spent its time, in seconds."""

    worker: int | str
    """The process id or the thread's name."""
    objects: int = 0
    start: float = 0.0
    """From its start until it was ready for its first chunk; 0 if its executor does not say."""
    wait: float = 0.0
    """Without a chunk, also at the end of the run."""
    work: float = 0.0
    """On objects, commits left out."""
    commit: float = 0.0
    """On commits."""
    last: float = 0.0
    """When its last event came, by the caller's clock."""
    ended: bool = False
    """Whether it ended before its run did."""

    @property
    def busy(self) -> float:
        """The share of its time in which it worked or committed."""
        spent = self.start + self.wait + self.work + self.commit
        return (self.work + self.commit) / spent if spent else 0.0


@dataclass(frozen=True, slots=True)
class Resizing:
    """A change of the number of workers in the middle of a run."""

    workers: int
    """How many there were from then on."""
    index: int
    """How many objects had ended by then."""
    reason: str

    def __str__(self) -> str:
        return f"{self.workers} from object {self.index}, {self.reason}"


class Statistics:
    """How the workers of a run spent their time; prints as a table."""

    def __init__(self) -> None:
        self.item_of: Callable[[Any], Any] = _unchanged
        self.index_of: Callable[[int], int] = _unchanged
        """What to show for an object that was fed in."""
        self._times: dict[int | str, WorkerTimes] = {}
        self._slowest: list[tuple[float, int, Any]] = []
        """Seconds, index and item of the objects that took longest, in ascending order."""
        self._started_at = time.perf_counter()
        self._ended_at: float | None = None
        self._tail = 0.0
        self.first_workers: int | None = None
        """How many workers the run began with, where their number may change; else None."""
        self.resizings: list[Resizing] = []
        """The changes of that number; the report prints them."""
        self.batching: Batching | None = None
        """With `batch_writes`: what it did; prints as a line. Else None."""
        self.pulling = 0.0
        """Seconds that the caller spent on pulling objects out of its input."""
        self.throttled = 0.0
        """Seconds for which throttles held the run back, once it has ended."""

    @property
    def workers(self) -> list[WorkerTimes]:
        """The times of each worker, in the order in which workers were ready."""
        return [*self._times.values()]

    @property
    def slowest(self) -> list[SlowObject]:
        """The objects that took longest, the slowest first."""
        return [SlowObject(*slow) for slow in reversed(self._slowest)]

    @property
    def busy(self) -> float:
        """The share of their time in which the workers worked or committed, from 0 to 1."""
        spent = sum(times.start + times.wait + times.work + times.commit for times in self.workers)
        return sum(times.work + times.commit for times in self.workers) / spent if spent else 0.0

    @property
    def hint(self) -> str | None:
        """What to change if the workers were busy for less than 80 % of their time; None if they were busy, if the run
        took less than a second, or if it was too small to tell."""
        elapsed = (self._ended_at or time.perf_counter()) - self._started_at
        if not self.workers or self.busy >= MIN_BUSY_SHARE or elapsed < MIN_SECONDS_FOR_HINT:
            return None
        reason = self._reason(elapsed)
        return reason and f"the workers were busy for {self.busy:.0%} of their time only: {reason}"

    def _reason(self, elapsed: float) -> str | None:
        if self.throttled > elapsed * (1 - MIN_BUSY_SHARE):
            return f"throttles held the run back for {self.throttled:.1f} s of {elapsed:.1f}"
        starting = sum(times.start for times in self.workers)
        idle = starting + sum(times.wait for times in self.workers)
        if self.pulling > elapsed / 2:
            return "the input gives objects slowly, so use fewer workers, or let the function make the objects"
        if starting > idle / 2:
            # Of workers that the run has chosen by itself there is nothing to say.
            advice = 'most of the rest went into their start, so use fewer, or executor="serial" for so little work'
            return None if self.resizings else advice
        if self._tail > idle / 2:
            return "most of the rest was waiting for the last chunks of others, so use fewer workers or smaller chunks"
        if sum(times.objects for times in self.workers) < MIN_OBJECTS_FOR_HINT * len(self.workers):
            return None
        return "they waited for the caller, so use fewer workers, larger chunks, or a caller with less to do in between"

    def started(self, worker: int | str, seconds: float) -> None:
        """Note that a worker is ready, `seconds` after its start."""
        times = self._times_of(worker)
        times.start, times.last = seconds, time.perf_counter()

    def resized(self, workers: int, index: int, reason: str) -> None:
        """Note that there are so many workers now, after so many objects."""
        self.resizings.append(Resizing(workers, index, reason))

    def retired(self, worker: int | str) -> None:
        """Note that a worker has ended since the others are enough."""
        times = self._times.get(worker)
        if times is not None:
            times.wait += time.perf_counter() - times.last
            times.ended = True

    @property
    def worker_counts(self) -> str:
        """How many workers there were: the number, or the numbers one after the other."""
        if not self.resizings:
            return str(len(self.workers))
        return ", then ".join([str(self.first_workers), *map(str, self.resizings)])

    def died(self, worker: int | str) -> None:
        """Note that a worker has died."""
        self._times_of(worker).ended = True

    def left(self) -> None:
        """Note that all workers have ended and others go on."""
        now = time.perf_counter()
        for times in self.workers:
            if not times.ended:
                times.wait += now - times.last
                times.ended = True

    def answered(self, worker: int | str, spent: WorkerTime, batch: OutcomeBatch) -> None:
        """Add a worker's answer for some objects."""
        times = self._times_of(worker)
        count = len(batch.values)
        times.objects += count
        times.wait += spent.waited
        times.commit += spent.committed
        times.work += spent.worked - spent.committed
        times.last = time.perf_counter()
        times.ended = False
        if spent.batching is not None:
            self.batching = spent.batching if self.batching is None else self.batching + spent.batching
        # A look at every object would cost as much as a short object itself.
        if len(self._slowest) < SLOWEST_SHOWN or spent.longest > max(SLOW_SECONDS, self._slowest[0][0]):
            self._update_slowest(batch)

    def _update_slowest(self, batch: OutcomeBatch) -> None:
        times: Iterable[tuple[float, int]] = zip(batch.seconds, count())
        if len(batch.values) > SLOWEST_SHOWN:
            times = nlargest(SLOWEST_SHOWN, times)
        for seconds, offset in times:
            self._slowest.append((seconds, self.index_of(batch.first + offset), self.item_of(batch.objects[offset])))
        if len(self._slowest) > 1:
            self._slowest.sort(key=itemgetter(0))
            del self._slowest[:-SLOWEST_SHOWN]

    def _times_of(self, worker: int | str) -> WorkerTimes:
        times = self._times.get(worker)
        if times is None:
            times = self._times[worker] = WorkerTimes(worker)
        return times

    def __getstate__(self) -> dict[str, Any]:
        # Without the objects, which may not be picklable.
        slowest = [(seconds, index, None) for seconds, index, _item in self._slowest]
        return {**self.__dict__, "item_of": _unchanged, "index_of": _unchanged, "_slowest": slowest}

    def finish(self) -> None:
        """End the run: workers that have not ended have waited since their last answer."""
        if self._ended_at is not None:
            return
        self._ended_at = time.perf_counter()
        for times in self._times.values():
            if not times.ended:
                times.wait += self._ended_at - times.last
                self._tail += self._ended_at - times.last

    def as_dict(self) -> dict[str, Any]:
        """Give plain data, for files."""
        workers = [
            {"worker": times.worker, "objects": times.objects, "ended": times.ended}
            | {name: round(getattr(times, name), 6) for name in ("start", "wait", "work", "commit", "busy")}
            for times in self.workers
        ]
        slowest = [{"index": slow.index, "seconds": round(slow.seconds, 6)} for slow in self.slowest]
        batching = None if self.batching is None else asdict(self.batching)
        return {
            "workers": workers, "resizings": [asdict(change) for change in self.resizings],
            "busy": round(self.busy, 4), "slowest": slowest, "hint": self.hint, "batching": batching,
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [f"{'worker':>16} {'objects':>9} {'start':>8} {'wait':>8} {'work':>8} {'commit':>8} {'busy':>5}"]
        lines += [
            f"{times.worker:>16} {times.objects:>9} {times.start:>8.2f} {times.wait:>8.2f} {times.work:>8.2f}"
            f" {times.commit:>8.2f} {times.busy:>5.0%}"
            for times in self.workers
        ]
        lines += [f"slowest: {slow.seconds:.3f} s at index {slow.index}" for slow in self.slowest]
        if self.batching is not None:
            lines.append(f"batched writes: {self.batching}")
        if self.hint:
            lines.append(self.hint)
        return "\n".join(lines)


def _unchanged(item: Any) -> Any:
    return item
