"""How much of a run may be in flight at present, by what its throttles say. Knows no database.

    throttles --once a second--> Gauge, Gauge, ... --the least share--> ThrottleMeter --> ThrottleGate --> Engine
    Pace -------------------------------------------------------------> Pacer ----------------^

An engine with throttles asks its gate before it sends a chunk, in the caller's thread. A durable run reads `share`,
`reason` and `held` of the meter.
"""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from .._environment.warnings import warn
from .._reports.throttling import Throttled
from .._runtime.foreign_exceptions import text_of
from ..errors import InvalidOption
from ..executors import Event, Executor
from ..throttles._reading import UNREADABLE, Heartbeats, RunView
from ..throttles.pace import Pace

INTERVAL = 1.0
"""Seconds between two looks of the throttles."""
MAX_MISSES = 3
"""Looks in a row that a throttle may fail to take before it counts as gone."""
REST = 30
"""Looks for which a throttle is not asked that could not be read so often from the start: each may take seconds."""
SLACK = 0.5
"""Seconds by which an engine may come too late to keep a pace all the same: it then catches up."""
SHARE_OF_SECOND = 0.1
"""Seconds of a pace that one automatic chunk may use up: its objects go out together."""
EXPECTED = "a throttle gives None, a share from 0.0 to 1.0, or a share and a reason"


class Gauge:
    """One throttle of a run, with what it said last."""

    def __init__(self, throttle: Any, run: RunView) -> None:
        self._throttle = throttle
        self.name = _name_of(throttle)
        self.share = 1.0
        self.reason = ""
        self.follow(run)
        self._was_read = False
        self._missed = self._rest = 0
        self.seconds = self.held = 0.0
        self._lowest = (math.inf, "")

    def follow(self, run: RunView) -> None:
        """Take the readings for this run."""
        for_run = getattr(self._throttle, "_for_run", None)
        self._read: Callable[[], Any] = self._throttle if for_run is None else for_run(run)

    def look(self) -> None:
        """Take a reading.

        Raises:
            Exception: whatever the throttle's own code raises at the first look, and a value that is none.
        """
        if self._rest:
            self._rest -= 1
            return
        try:
            answer = self._read()
        except Exception as error:
            self._miss(error)
        else:
            self._was_read, self._missed = True, 0
            self.share, self.reason = _checked(answer, self._throttle)

    def _miss(self, error: Exception) -> None:
        if not self._was_read:
            if not isinstance(error, UNREADABLE):
                raise error
            if not self._missed:
                warn(f"the throttle {self.name} cannot be read, and so does not slow this run down: {_told(error)}")
        self._missed += 1
        if self._missed < MAX_MISSES:
            return
        if self._was_read:
            self.share, self.reason = 0.0, f"{self.name} can no longer be read: {_told(error)}"
        else:
            self._rest = REST

    def spent(self, seconds: float) -> None:
        """Count seconds in which no other throttle gave less."""
        self.seconds += seconds
        self.held += 0.0 if self.share else seconds
        self._lowest = min((self.share, self.reason), self._lowest, key=lambda lowest: lowest[0])

    def summary(self) -> Throttled:
        """Give the row of the report."""
        return Throttled(throttle=self.name, seconds=self.seconds, held=self.held, reason=self._lowest[1])


class ThrottleMeter:
    """The share of its workers that a run may use now, and why. Several engines may ask the same one."""

    def __init__(self, throttles: Sequence[Any], run: RunView) -> None:
        self._run = run
        self._gauges = [Gauge(throttle, run) for throttle in throttles if not isinstance(throttle, Pace)]
        paces = [throttle for throttle in throttles if isinstance(throttle, Pace)]
        self.pacer = Pacer(min(paces, key=lambda pace: pace.objects)) if paces else None
        """Counts the objects of the input, if there is a pace."""
        self.share = 1.0
        """0.0: nothing new starts. Else that part of the workers gets chunks, at least one of them."""
        self.reason = ""
        """Why it is less than 1.0; else empty."""
        self.looking = False
        """Whether a throttle's code is running."""
        self._looked_at = -math.inf
        self._counted_at = time.monotonic()
        self._held_since: float | None = None
        self._lowest: Gauge | None = None
        # Its put() may be called by a signal handler of the thread that is in get().
        self._naps: queue.SimpleQueue[None] = queue.SimpleQueue()

    def follow(self, heartbeats: Heartbeats) -> None:
        """Have throttles go by the heartbeats of a durable run. Call it before the run starts."""
        self._run = replace(self._run, heartbeats=heartbeats)
        for gauge in self._gauges:
            gauge.follow(self._run)

    @property
    def held(self) -> float:
        """Seconds for which nothing new could start, without a break until now; 0.0 if something can."""
        return 0.0 if self._held_since is None else time.monotonic() - self._held_since

    def slots(self, slots: int, workers: int) -> int:
        """Give how many chunks may be in flight now, of so many. Looks first, if that is due."""
        if self._gauges and time.monotonic() - self._looked_at >= INTERVAL:
            self._look()
        return slots if self.share == 1.0 else min(slots, math.ceil(workers * self.share))

    def _look(self) -> None:
        self._count()
        self.looking = True
        try:
            for gauge in self._gauges:
                gauge.look()
        finally:
            self.looking = False
            self._looked_at = time.monotonic()
        lowest = min(self._gauges, key=lambda gauge: gauge.share)
        self._lowest = lowest if lowest.share < 1.0 else None
        self.share, self.reason = (1.0, "") if self._lowest is None else (lowest.share, lowest.reason)
        if self.share:
            self._held_since = None
        elif self._held_since is None:
            self._held_since = self._looked_at

    def _count(self) -> None:
        now = time.monotonic()
        if self._lowest is not None:
            self._lowest.spent(now - self._counted_at)
        self._counted_at = now

    def wait_time(self) -> float | None:
        """Seconds until the next look, while there is less than the whole; else None."""
        return None if self.share == 1.0 else max(0.0, self._looked_at + INTERVAL - time.monotonic())

    def nap(self, seconds: float) -> None:
        """Wait in the thread that runs objects itself, until `wake` at most."""
        with suppress(queue.Empty):
            self._naps.get(timeout=seconds)

    def wake(self) -> None:
        """End a nap, now or the next one. Callable from any thread, and in a signal handler."""
        if self._naps.empty():
            self._naps.put(None)

    def summary(self) -> tuple[Throttled, ...]:
        """Give a row for each throttle that held the run back until now."""
        self._count()
        rows = [gauge.summary() for gauge in self._gauges if gauge.seconds]
        if self.pacer is not None and self.pacer.waited:
            rows.append(self.pacer.summary())
        return tuple(rows)


class Pacer:
    """Keeps a pace: the next objects go out when the time of those before has passed."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._next = time.monotonic()
        self._waits_since: float | None = None
        self.waited = 0.0
        """Seconds in which objects could have gone out but for the pace."""

    @property
    def most_at_once(self) -> int:
        """Upper bound on the objects of an automatic chunk."""
        return max(1, int(self._pace.objects * SHARE_OF_SECOND))

    def delay(self) -> float | None:
        """Seconds until the next objects may go out; None: they may."""
        now = time.monotonic()
        if now < self._next:
            self._waits_since = now if self._waits_since is None else self._waits_since
            return self._next - now
        if self._waits_since is not None:
            self.waited += now - self._waits_since
            self._waits_since = None
        return None

    def started(self, objects: int) -> None:
        """Take note of objects that go out now."""
        self._next = max(self._next, time.monotonic() - SLACK) + objects / self._pace.objects

    def summary(self) -> Throttled:
        """Give the row of the report."""
        reason = f"at most {self._pace.objects:g} objects per second"
        return Throttled(throttle=repr(self._pace), seconds=self.waited, held=0.0, reason=reason)


class ThrottleGate:
    """What the throttles let one engine send now. The segments of a pipeline have a gate each, and share the meter."""

    def __init__(self, meter: ThrottleMeter, *, counts_pace: bool = True) -> None:
        """`counts_pace`: whether what the engine sends comes from the input, and so counts for a pace."""
        self.meter = meter
        self._pacer = meter.pacer if counts_pace else None
        self.idled = 0.0
        """Seconds for which nothing at all could run."""

    @property
    def is_narrow(self) -> bool:
        """Whether less can be sent now than without throttles."""
        return self.meter.share < 1.0 or self.pace_delay() is not None

    def slots(self, slots: int, workers: int) -> int:
        """Give how many chunks may be in flight now, of so many."""
        return 0 if self.pace_delay() is not None else self.meter.slots(slots, workers)

    def size(self, size: int) -> int:
        """Give the size of an automatic chunk that would have so many objects."""
        return size if self._pacer is None else min(size, self._pacer.most_at_once)

    def sent(self, objects: int) -> None:
        """Take note of objects that go out now."""
        if self._pacer is not None:
            self._pacer.started(objects)

    def pace_delay(self) -> float | None:
        """Seconds until a pace lets the next objects out; None: it does."""
        return None if self._pacer is None else self._pacer.delay()

    def wait_time(self, paced: float | None) -> float | None:
        """Seconds until a pace, in `paced` seconds, or a look at throttles may change anything; None: nothing does."""
        return min((seconds for seconds in (paced, self.meter.wait_time()) if seconds is not None), default=None)

    def wait(self, executor: Executor, timeout: float) -> Sequence[Event]:
        """Wait for an executor that has no task, unless throttles are the reason for that."""
        if not self.is_narrow:
            return executor.wait(timeout)
        started = time.perf_counter()
        try:
            if not executor.inline:
                return executor.wait(timeout)
            self.meter.nap(timeout)  # an inline executor without a task does not wait
            return ()
        finally:
            self.idled += time.perf_counter() - started


def _checked(answer: Any, throttle: Any) -> tuple[float, str]:
    share, reason = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, "")
    share = 1.0 if share is None else share
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise InvalidOption("throttle", throttle, f"{EXPECTED}, and it gave {answer!r}")
    return float(share), str(reason or f"{_name_of(throttle)} gives {share:g}")


def _name_of(throttle: Any) -> str:
    return getattr(throttle, "__qualname__", None) or repr(throttle)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {text_of(error).strip()}"
