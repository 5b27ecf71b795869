"""How many workers a run has that may choose, as with `workers="auto"`. Pure: figures of a window in, a number out.

`WorkerSizing` measures windows, asks, and acts. More workers pay while they wait more than they compute, for a server
that is a network away. Each change is a trial: the next window says whether it stays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

GAIN = 0.05
"""Share by which a growth must raise the rate for another one to follow."""
LOSS = 0.1
"""Share by which a change must lower the rate to be undone. Windows are short, so their rates vary."""
WAITING, MOSTLY_WAITING = 0.5, 0.75
"""Share of their time that workers must wait for one growth to double them, or to make them four times as many."""
MIN_GROWTH = 1.25
"""Factor below which a growth is not worth a trial."""
SPARE = 1.5
"""How many times as many workers there may be as would keep the CPUs busy: they do not take turns exactly."""
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
    """The share of their work in which workers used a CPU, or stood in line for one."""
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
    before: tuple[int, float] | None = None
    """The number and the rate before a change that is on trial."""
    usual: float | None = None
    """The smoothed rate of the present number."""
    doubted: bool = False
    """Whether the last window was a slow one. Two have to agree, since a machine has other things to do, too."""
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
            if window.rate < rate * (1 - LOSS):
                if not self.doubted:
                    return replace(self, doubted=True)
                return self._rested(window.now, workers, f"since {self.workers} were slower", usual=rate)
            if self.workers < workers or window.rate <= rate * (1 + GAIN):
                return self._rested(window.now, self.workers, self.reason, usual=window.rate)
        return self._tried(window)

    def _relieved(self, now: float) -> WorkerPolicy:
        if now < self.grace_until:
            return replace(self, before=None, usual=None, resting_until=max(self.resting_until, now + GRACE))
        return replace(self._rested(now, max(self.least, self.workers // 2), OVERLOADED), grace_until=now + GRACE)

    def _tried(self, window: Window) -> WorkerPolicy:
        if window.now >= self.resting_until:
            if self.before is None and self.usual is not None and window.rate < FALL * self.usual:
                if not self.doubted:
                    return replace(self, doubted=True)
                fewer = max(self.least, self.workers // 2)
                if fewer < self.workers:
                    return self._on_trial(window, fewer, SLOWER)
            more = self._more(window)
            if more >= MIN_GROWTH * self.workers and self._pays(more, window):
                waiting = f"since they waited for {1 - window.computing:.0%} of their time"
                return self._on_trial(window, more, waiting)
        usual = window.rate if self.usual is None or self.before else self._smoothed(self.usual, window.rate)
        return replace(self, before=None, usual=usual, doubted=False)

    def _more(self, window: Window) -> int:
        waiting = 1 - window.computing
        if waiting <= WAITING or window.busy < MIN_BUSY:
            return self.workers
        useful = SPARE * self.cpus / max(window.computing, 1e-6)
        factor = 4 if waiting >= MOSTLY_WAITING else 2
        return int(min(self.most, factor * self.workers, useful, window.chunks))

    def _pays(self, more: int, window: Window) -> bool:
        """Whether half of what can be gained is more than the starts cost."""
        gained = window.left / max(window.rate, 1e-9) * (1 - self.workers / more)
        return gained / 2 > window.start * (more - self.workers) / self.cpus

    @staticmethod
    def _smoothed(usual: float, rate: float) -> float:
        return SMOOTHING * usual + (1 - SMOOTHING) * rate

    def _on_trial(self, window: Window, workers: int, reason: str) -> WorkerPolicy:
        return replace(
            self, workers=workers, before=(self.workers, window.rate), usual=None, doubted=False, reason=reason
        )

    def _rested(self, now: float, workers: int, reason: str, *, usual: float | None = None) -> WorkerPolicy:
        return replace(
            self, workers=workers, before=None, usual=usual, doubted=False, reason=reason,
            resting_until=now + self.pause, pause=min(LONGEST_PAUSE, 2 * self.pause),
        )  # fmt: skip

    def refused(self, now: float, workers: int) -> WorkerPolicy:
        """Give the policy after a growth that has come no further than to `workers`."""
        if self.before is not None and workers > self.before[0]:
            return replace(self, workers=workers, reason=FULL)
        return self._rested(now, workers, FULL)
