"""A run as a queueing network: caller, scheduler, workers and database, event by event.

                 caller -> scheduler -> latency -> worker: per object  wait -> database
                   ^                                 |     per transaction      log flush
                   +---------------------------------+  the next chunk is asked for when one has ended

No poolsave in it: what things cost is measured elsewhere and passed in. `tests.benchmarks.billion` does that, compares
it with real runs, and asks it about runs that nobody can try.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds that each part is busy."""

    caller: float
    """Per chunk, in the caller's one thread."""
    scheduler: float = 0.0
    """Per chunk, in the scheduler's one thread; 0: there is none."""
    latency: float = 0.0
    """Per chunk, on its way there and back."""
    chunk: float = 0.0
    """Per chunk, in the worker: to open what it needs and to close it."""
    row: float
    """Per object, in the worker beside what the function itself takes."""
    database: float
    """Per object, of one of the server's CPUs."""
    network: float = 0.0
    """Per object, on the way to the database and back, all statements together."""
    transaction: float = 0.0
    """Per transaction, of one of the server's CPUs."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run."""

    workers: int
    wait: float
    """Seconds that the function of one object takes, without its saves."""
    chunksize: int
    per_chunk: bool
    """Whether a chunk is one transaction; else each object is."""
    servers: int
    """How many objects the database can serve at once: its CPUs, or the connections of a pooler."""
    flush: float = 0.0
    """Seconds in which the database's log is made durable; one flush serves all that wait for it."""


@dataclass
class Station:
    """Servers that take what comes in order of arrival."""

    servers: int
    busy: float = 0.0
    _free: list[float] = field(default_factory=list)

    def serve(self, now: float, seconds: float) -> float:
        """Give the time at which it is done."""
        begin = now
        if len(self._free) == self.servers:
            begin = max(now, heapq.heappop(self._free))
        heapq.heappush(self._free, begin + seconds)
        self.busy += seconds
        return begin + seconds


@dataclass
class Log:
    """The log of the database. While one flush runs, those that come wait for the next one, and share it."""

    flush: float
    _began: float = float("-inf")
    """When the last flush begins: it can be one that waits for the end of another."""

    def serve(self, now: float) -> float:
        """Give the time at which it is durable."""
        if now > self._began:
            self._began = max(now, self._began + self.flush)
        return self._began + self.flush


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a simulated run came to."""

    rate: float
    """Objects per second."""
    load: dict[str, float]
    """By part: the share of the time in which it was busy."""

    @property
    def limit(self) -> str:
        """The part with the highest load."""
        return max(self.load, key=lambda part: self.load[part])


def simulate(plan: Plan, costs: Costs, *, chunks_per_worker: int = 20) -> Result:
    """Run so many chunks for each worker. The first fifth of the time does not count: all workers begin at once."""
    return Simulation(plan, costs).run(chunks_per_worker)


class Simulation:
    """One run."""

    def __init__(self, plan: Plan, costs: Costs) -> None:
        self._plan, self._costs = plan, costs
        self._caller, self._scheduler = Station(1), Station(1)
        self._database, self._log = Station(plan.servers), Log(plan.flush)
        self._ended: list[float] = []
        self._working = 0.0

    def run(self, chunks_per_worker: int) -> Result:
        order = itertools.count()
        events = []
        for number in range(self._plan.workers):  # apart, or all would end at once, and the rate come in steps
            offset = self._plan.wait * self._plan.chunksize * number / self._plan.workers
            events.append((offset, next(order), self._worker(offset, chunks_per_worker)))
        heapq.heapify(events)
        while events:
            _now, _number, worker = heapq.heappop(events)
            until = next(worker, None)
            if until is not None:
                heapq.heappush(events, (until, next(order), worker))
        return self._result()

    def _worker(self, now: float, chunks: int) -> Iterator[float]:
        plan, costs = self._plan, self._costs
        for _ in range(chunks):
            yield now
            now = self._caller.serve(now, costs.caller)
            if costs.scheduler:
                yield now
                now = self._scheduler.serve(now, costs.scheduler)
            now += costs.latency
            began = now
            now += costs.chunk
            for _ in range(plan.chunksize):
                now += plan.wait + costs.row
                yield now
                now = self._database.serve(now, costs.database + (0 if plan.per_chunk else costs.transaction))
                now += costs.network
                if not plan.per_chunk:
                    yield now
                    now = self._log.serve(now)
            if plan.per_chunk:
                yield now
                now = self._database.serve(now, costs.transaction)
                yield now
                now = self._log.serve(now)
            self._ended.append(now)
            self._working += now - began

    def _result(self) -> Result:
        ended = sorted(self._ended)
        # Neither the start counts, nor the end, at which some workers have no chunk any more.
        first, last = ended[len(ended) // 5], ended[len(ended) * 4 // 5]
        rate = (len(ended) * 4 // 5 - len(ended) // 5) * self._plan.chunksize / (last - first)
        whole = ended[-1]
        load = {
            "caller": self._caller.busy / whole,
            "scheduler": self._scheduler.busy / whole,
            "database": self._database.busy / whole / self._plan.servers,
            "workers": self._working / whole / self._plan.workers,
        }
        return Result(rate=rate, load=load)
