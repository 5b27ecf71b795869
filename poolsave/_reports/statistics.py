"""How the workers of a run spent their time, which objects took longest, and what to change."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import nlargest
from operator import attrgetter, itemgetter
from typing import Any

from .._worker.replies import WorkerTime
from .batches import EndTimes, OutcomeBatch

SLOWEST = 5
"""Objects that are listed as the slowest."""
SLOW = 0.002
"""Seconds that an object has to take to drive another one out of that list; what is brisker is not looked at."""
BUSY = 0.8
"""The share of their time that workers should be busy, below which there is a hint; the mark that mpire sets, too."""
TELLING = 1.0
"""Seconds of a run below which there is no hint, since starting workers takes a good part of it anyway."""


@dataclass(frozen=True, slots=True)
class SlowObject:
    """One of the objects that took longest, or the last of eight of which one did (see `Outcome.seconds`)."""

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
    """When it was heard of last, by the caller's clock."""
    ended: bool = False
    """Whether it ended before its run did."""

    @property
    def busy(self) -> float:
        """The share of its time in which it worked or committed."""
        spent = self.start + self.wait + self.work + self.commit
        return (self.work + self.commit) / spent if spent else 0.0


class Statistics:
    """How the workers of a run spent their time; prints as a table."""

    def __init__(self) -> None:
        self.item_of: Callable[[Any], Any] = _itself
        """What to show for an object that was fed in."""
        self._times: dict[int | str, WorkerTimes] = {}
        self._slowest: list[SlowObject] = []
        self._began = time.perf_counter()
        self._ended: float | None = None
        self._tail = 0.0
        self.pulling = 0.0
        """Seconds that the caller spent on pulling objects out of its input."""

    @property
    def workers(self) -> list[WorkerTimes]:
        """One for each worker, in the order in which they were ready."""
        return [*self._times.values()]

    @property
    def slowest(self) -> list[SlowObject]:
        """The objects that took longest, the slowest first."""
        return sorted(self._slowest, key=attrgetter("seconds"), reverse=True)

    @property
    def busy(self) -> float:
        """The share of their time in which the workers worked or committed, from 0 to 1."""
        spent = sum(one.start + one.wait + one.work + one.commit for one in self.workers)
        return sum(one.work + one.commit for one in self.workers) / spent if spent else 0.0

    @property
    def hint(self) -> str | None:
        """What to change if the workers were busy for less than 80 % of their time; None if they were, or if the run
        took less than a second."""
        elapsed = (self._ended or time.perf_counter()) - self._began
        if not self.workers or self.busy >= BUSY or elapsed < TELLING:
            return None
        return f"the workers were busy for {self.busy:.0%} of their time only: {self._reason(elapsed)}"

    def _reason(self, elapsed: float) -> str:
        starting = sum(one.start for one in self.workers)
        idle = starting + sum(one.wait for one in self.workers)
        if self.pulling > elapsed / 2:
            return "the input gives objects slowly, so use fewer workers, or let the function make the objects"
        if starting > idle / 2:
            return 'most of the rest went into their start, so use fewer, or executor="serial" for so little work'
        if self._tail > idle / 2:
            return "most of the rest was waiting for the last chunks of others, so use fewer workers or smaller chunks"
        return "objects came slowly, so use fewer workers, larger chunks, or a caller with less to do in between"

    def started(self, worker: int | str, seconds: float) -> None:
        """A worker is ready, so long after its start was begun."""
        times = self._of(worker)
        times.start, times.last = seconds, time.perf_counter()

    def died(self, worker: int | str) -> None:
        """A worker has ended before its time."""
        self._of(worker).ended = True

    def left(self) -> None:
        """All workers have ended, and others will go on."""
        now = time.perf_counter()
        for one in self.workers:
            if not one.ended:
                one.wait += now - one.last
                one.ended = True

    def answered(self, worker: int | str, spent: WorkerTime, batch: OutcomeBatch) -> None:
        """A worker has answered for some objects."""
        times = self._of(worker)
        count = len(batch.values)
        times.objects += count
        times.wait += spent.waited
        times.commit += spent.committed
        times.work += spent.worked - spent.committed
        times.last = time.perf_counter()
        times.ended = False
        # Looking at every object would take as long as a brisk one itself.
        if len(self._slowest) < SLOWEST or spent.longest > max(SLOW, self._slowest[0].seconds):
            self._look_for_slow_ones(batch)

    def _look_for_slow_ones(self, batch: OutcomeBatch) -> None:
        laps = enumerate(_laps(batch.seconds, len(batch.values)))
        found = [
            SlowObject(lap, batch.first + place, self.item_of(batch.objects[place]))
            for place, lap in nlargest(SLOWEST, laps, key=itemgetter(1))
        ]
        self._slowest = sorted([*self._slowest, *found], key=attrgetter("seconds"))[-SLOWEST:]

    def _of(self, worker: int | str) -> WorkerTimes:
        times = self._times.get(worker)
        if times is None:
            times = self._times[worker] = WorkerTimes(worker)
        return times

    def __getstate__(self) -> dict[str, Any]:
        # Without the objects, which may not be picklable.
        slowest = [SlowObject(one.seconds, one.index, None) for one in self._slowest]
        return {**self.__dict__, "item_of": _itself, "_slowest": slowest}

    def finish(self) -> None:
        """The run is over: who was not heard of since has waited."""
        if self._ended is not None:
            return
        self._ended = time.perf_counter()
        for one in self.workers:
            if not one.ended:
                one.wait += self._ended - one.last
                self._tail += self._ended - one.last

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for files."""
        workers = [
            {"worker": one.worker, "objects": one.objects, "ended": one.ended}
            | {name: round(getattr(one, name), 6) for name in ("start", "wait", "work", "commit", "busy")}
            for one in self.workers
        ]
        slowest = [{"index": one.index, "seconds": round(one.seconds, 6)} for one in self.slowest]
        return {"workers": workers, "busy": round(self.busy, 4), "slowest": slowest, "hint": self.hint}

    def __str__(self) -> str:
        lines = [f"{'worker':>16} {'objects':>9} {'start':>8} {'wait':>8} {'work':>8} {'commit':>8} {'busy':>5}"]
        lines += [
            f"{one.worker:>16} {one.objects:>9} {one.start:>8.2f} {one.wait:>8.2f} {one.work:>8.2f} {one.commit:>8.2f}"
            f" {one.busy:>5.0%}"
            for one in self.workers
        ]
        lines += [f"slowest: {one.seconds:.3f} s at index {one.index}" for one in self.slowest]
        if self.hint:
            lines.append(self.hint)
        return "\n".join(lines)


def _laps(seconds: Sequence[float] | EndTimes, count: int) -> Iterable[float]:
    """What each object took; where stages share a worker, there is a column for each of them, one after the other."""
    if len(seconds) == count:
        return seconds
    column = [*seconds]
    return [sum(column[place::count]) for place in range(count)]


def _itself(item: Any) -> Any:
    return item
