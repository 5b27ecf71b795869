"""How many workers a run has that may choose, as with `workers="auto"`. Pure: figures of a window in, a number out.

`WorkerSizing` measures windows, asks, and acts. More workers pay while these leave CPUs unused, since they wait for a
server that is a network away. Each change is a trial: the next window says whether it stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

GAIN = 0.05
"""Share by which a growth must raise the rate, or it is undone: workers of no use take connections and memory."""
LOSS = 0.1
"""Share by which having fewer must lower the rate to be undone."""
WINDOWS = 3
"""How many windows in a row have to say that the rate is too low: they are short, and machines do other things, too."""
USED = 0.8
"""Share of the CPUs that workers use from which on more of them are no help."""
SPARE = 1.5
"""How many times as many workers there may be as would keep the CPUs busy: they do not take turns exactly."""
SPARE_IN_TURN = 3.0
"""The same for threads that share the GIL: one whose answer has come waits for it once more."""
FEWEST = 4
"""Workers that a growth keeps, but no more than two per CPU. So few take little, and rates say nothing where a machine
is busy for a moment."""
MIN_GROWTH = 1.5
"""Factor below which a growth is not worth a trial, unless it is one to `FEWEST` at most."""
MIN_BUSY = 0.5
"""Share of their time in which workers must have objects. Otherwise the input is what is slow."""
FALL = 0.5
"""Share of the usual rate below which fewer workers are tried: the server may have too much to do."""
SMOOTHING = 0.8
"""Weight of the past in the usual rate."""
FIRST_PAUSE = 2.0
"""Seconds until the next trial after one that did not pay. They double with each further one."""
LONGEST_PAUSE = 60.0
GRACE = 1.0
"""Seconds after an overload in which another does not count: what it ended began before there were fewer workers."""

SLOWER = "since they became slower"
OVERLOADED = "since the server ended what waited too long, or refused connections"
FULL = "since the server has no more connections to give"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What all workers did in some part of a second."""

    now: float
    """Seconds, by a clock that only goes forward."""
    rate: float
    """Objects per second."""
    computing: float
    """The share of their work in which workers, or servers on this machine for them, used a CPU."""
    in_line: float = 0.0
    """The share of their work in which these stood in line for one."""
    busy: float = 1.0
    """The share of their time in which workers had objects."""
    left: int
    """Objects that are still to come. If that is unknown: as many as have ended."""
    chunks: int
    """The most chunks that these can be."""
    start: float = 0.0
    """Seconds that a worker takes to start."""
    overloaded: bool = False
    """Whether the server ended a statement or a wait for a lock that took too long, or refused a connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPolicy:
    """The present number of workers, and what is known of others."""

    workers: int
    least: int
    most: int
    cpus: int
    """How many workers can compute at once."""
    in_turn: bool = False
    """Whether they are threads that share the GIL. Waiting for it looks like waiting for a server."""
    before: tuple[int, float] | None = None
    """The number and the rate before a change that is on trial."""
    usual: float | None = None
    """The smoothed rate of the present number."""
    slow: int = 0
    """How many windows in a row had too low a rate."""
    resting_until: float = 0.0
    grace_until: float = 0.0
    pause: float = FIRST_PAUSE
    reason: str = ""
    """Why the number was changed at last."""

    def after(self, window: Window) -> WorkerPolicy:
        """Give the policy after a window: its `workers` is the number to have now."""
        if window.overloaded:
            return self._relieved(window.now)
        if self.before is not None:
            workers, rate = self.before
            has_grown = self.workers > workers
            if window.rate < rate * (1 + GAIN if has_grown else 1 - LOSS):
                return self._slowed() or self._undone(window.now, workers, "no faster" if has_grown else "slower")
            if not has_grown:
                return self._rested(window.now, self.workers, self.reason)
        return self._tried(window)

    def _slowed(self) -> WorkerPolicy | None:
        """Give the policy after a slow window; None: after enough of them."""
        return None if self.slow + 1 >= WINDOWS else replace(self, slow=self.slow + 1)

    def _undone(self, now: float, before: int, why: str) -> WorkerPolicy:
        workers = max(before, min(self.workers, FEWEST, 2 * self.cpus))
        return self._rested(
            now, workers, self.reason if workers == self.workers else f"since {self.workers} were {why}"
        )

    def _relieved(self, now: float) -> WorkerPolicy:
        if now < self.grace_until:
            return replace(self, before=None, usual=None, resting_until=max(self.resting_until, now + GRACE))
        return replace(self._rested(now, max(self.least, self.workers // 2), OVERLOADED), grace_until=now + GRACE)

    def _tried(self, window: Window) -> WorkerPolicy:
        if window.now >= self.resting_until:
            if self.before is None and self.usual is not None and window.rate < FALL * self.usual:
                slowed = self._slowed()
                if slowed is not None:
                    return slowed
                fewer = max(self.least, self.workers // 2)
                if fewer < self.workers:
                    return self._on_trial(window, fewer, SLOWER)
            more = self._more(window)
            if more >= MIN_GROWTH * self.workers or self.workers < more <= FEWEST:
                waiting = f"since they waited for {1 - window.computing:.0%} of their time"
                return self._on_trial(window, more, waiting)
        usual = window.rate if self.usual is None or self.before else self._smoothed(self.usual, window.rate)
        return replace(self, before=None, usual=usual, slow=0)

    def _more(self, window: Window) -> int:
        if window.busy < MIN_BUSY:
            return self.workers
        most = min(self.most, self._worth_a_start(window), window.chunks)
        if self.workers * window.computing >= USED * self.cpus:
            # Two threads leave much of the GIL's time unused, and four hardly any.
            return int(min(most, FEWEST)) if self.in_turn and window.computing < USED else self.workers
        # Of the time that an object takes where no worker has to stand in line.
        computing = window.computing / max(1 - window.in_line, 1e-6)
        useful = (SPARE_IN_TURN if self.in_turn else SPARE) * self.cpus / max(computing, 1e-6)
        return int(min(most, useful))

    def _worth_a_start(self, window: Window) -> float:
        """How many workers share what is left, when half of what another one saves is what its start costs."""
        seconds = window.left * self.workers / max(window.rate, 1e-9)
        return math.sqrt(seconds / 2 * self.cpus / max(window.start, 1e-6))

    @staticmethod
    def _smoothed(usual: float, rate: float) -> float:
        return SMOOTHING * usual + (1 - SMOOTHING) * rate

    def _on_trial(self, window: Window, workers: int, reason: str) -> WorkerPolicy:
        return replace(self, workers=workers, before=(self.workers, window.rate), usual=None, slow=0, reason=reason)

    def _rested(self, now: float, workers: int, reason: str) -> WorkerPolicy:
        return replace(
            self, workers=workers, before=None, usual=None, slow=0, reason=reason,
            resting_until=now + self.pause, pause=min(LONGEST_PAUSE, 2 * self.pause),
        )  # fmt: skip

    def refused(self, now: float, workers: int) -> WorkerPolicy:
        """Give the policy after a growth that has come no further than to `workers`."""
        if self.before is not None and workers > self.before[0]:
            return replace(self, workers=workers, reason=FULL)
        return self._rested(now, workers, FULL)
