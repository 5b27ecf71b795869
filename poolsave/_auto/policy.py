"""Whether a run with `executor="auto"` goes on in the caller's thread or in a pool. Pure: figures in, decisions out.

`AutoEngine` measures, asks, and acts. The run starts serially, so that few objects cost what a loop costs. A pool is
worth its start if the expected speed-up of the objects that are left saves more than the start costs. A pool whose
speed cannot be expected is tried, and given up if it is too slow.
"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_START_SECONDS = {"fork": 0.04, "forkserver": 0.8, "spawn": 1.5}
"""Seconds until a pool gives its first answer, by start method, before this process has measured one."""
MIN_SAMPLE_SECONDS = 0.04
"""Seconds of work, without the first sample, after which its speed is known well enough."""
MAX_TRIAL_SHARE = 0.03
"""Share of the run's least possible time that a start or trial of a pool may cost if it may turn out a mistake."""
DISPATCH_SECONDS = 0.00002
"""Seconds that the caller spends on each object of a pool."""
SHARE_OF_BOUND = 0.5
"""Share of the largest possible speed-up that is expected. Not all that limits a pool is measured: a database server
on the same machine uses the same CPUs."""
LOCKED, LOCKED_IF_SHORT = 0.5, 0.28
"""Share of an object's time inside SQLite's only write lock from which a pool is not expected to be faster than the
caller: a worker that waits for that lock sleeps, and asks again. The second value is for objects below `SHORT`, the
length of the shortest such sleep; from there on two workers with trivial saves were measured to be slower."""
SHORT = 0.001
"""Seconds per object below which `LOCKED_IF_SHORT` counts."""
GROWTH_SECONDS = 0.5
"""Seconds of work for the caller alone from which a pool is expected to come to the largest number of its workers."""
MIN_WATCH_SECONDS, MAX_WATCH_SECONDS = 0.15, 0.6
"""Seconds for which a pool is measured before it is kept or given up: if its speed differs clearly, and at most."""
CLEARLY_FASTER, CLEARLY_SLOWER = 1.3, 0.5
"""Factors of the caller's speed that are clear after the shorter measurement. The second one is low: giving up a pool
that only starts slowly costs more than measuring it for longer."""
MIN_SPEEDUP = 1.05
"""Factor of the caller's speed that a pool must reach to be kept."""
RETRY_AFTER = 5.0
"""Seconds after which a pool that was given up may be tried again. They double with every further time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalMeasurement:
    """What the samples in the caller's thread say about the work."""

    samples: int
    seconds: float
    """Seconds that all samples took."""
    evidence: float
    """Seconds of the samples that `per_object` comes from: all but the first, which imports and connects."""
    per_object: float
    """Seconds that the function and its transaction take for one object."""
    computing: float
    """Share of that time in which this process computes. In the rest it waits."""
    locked: float
    """Share of that time inside write transactions on a SQLite file, which takes one at a time."""
    left: int
    """Objects that are still to come. If that is unknown: as many as have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolEstimate:
    """What is expected of a pool."""

    workers: int
    cpus: int
    most: int = 0
    """How many workers it may come to have, if that is more than it begins with."""
    start: float
    """Seconds until it gives its first answer."""
    given_up: int = 0
    """How many times a pool was too slow in this run."""
    since: float = 0.0
    """Seconds since a pool was given up last."""


def max_speedup(work: LocalMeasurement, pool: PoolEstimate) -> float:
    """Give the upper bound on a pool's speed-up. Workers bound it, CPUs bound what computes, and one lock bounds what
    holds it."""
    has_time_to_grow = not work.locked and work.left * work.per_object >= GROWTH_SECONDS  # SQLite has one writer
    workers = max(pool.workers, pool.most) if has_time_to_grow else pool.workers
    by_cpus = pool.cpus / work.computing if work.computing > 0 else workers
    by_lock = 1 / work.locked if work.locked > 0 else workers
    return max(1.0, min(workers, by_cpus, by_lock))


def should_start_pool(work: LocalMeasurement, pool: PoolEstimate) -> tuple[bool, str]:
    """Say whether to switch to a pool now, and why."""
    local_seconds = work.left * work.per_object
    if work.evidence < MIN_SAMPLE_SECONDS and (work.samples != 1 or pool.start > MAX_TRIAL_SHARE * work.seconds):
        return False, "too little has run to say anything"
    locked = work.locked >= (LOCKED_IF_SHORT if work.per_object < SHORT else LOCKED)
    if not locked and max_speedup(work, pool) <= MIN_SPEEDUP:
        return False, f"each object computes for {work.computing:.0%} of its time, and there is one CPU"
    if pool.given_up or locked:
        return _should_try_pool(local_seconds, work, pool)
    if local_seconds - _seconds_in_pool(work, pool) <= pool.start:
        return (
            False,
            f"at {_format_seconds(work.per_object)} each, what was left was not worth {_format_seconds(pool.start)} "
            "to start a pool",
        )
    return True, f"{work.left} objects left at {_format_seconds(work.per_object)} each are worth a pool"


def _should_try_pool(local_seconds: float, work: LocalMeasurement, pool: PoolEstimate) -> tuple[bool, str]:
    """Say whether to try a pool that is not expected to be faster: only if a trial costs little beside what is left."""
    if pool.given_up:
        why = "a pool was no faster than the caller alone"
    else:
        why = f"{work.locked:.0%} of each object's time goes by inside SQLite's one write lock"
    waited = not pool.given_up or pool.since >= RETRY_AFTER * 2 ** (pool.given_up - 1)
    if waited and pool.start + MAX_WATCH_SECONDS < MAX_TRIAL_SHARE * local_seconds:
        return True, f"{why}, but so much is left that a trial of a pool costs little"
    return False, why


def _seconds_in_pool(work: LocalMeasurement, pool: PoolEstimate) -> float:
    speedup = 1 + SHARE_OF_BOUND * (max_speedup(work, pool) - 1)
    return work.left * max(DISPATCH_SECONDS, work.per_object / speedup)


def should_keep_pool(
    per_object: float, objects: int, seconds: float, *, left: int | None, pool: PoolEstimate
) -> tuple[bool | None, str]:
    """Say whether to keep a pool that has ended `objects` in `seconds`, and why. None: not known yet.

    The caller alone takes `per_object` seconds for each.
    """
    if objects < 2 * pool.workers or seconds < MIN_WATCH_SECONDS:
        return None, "the pool is being measured"
    speedup = per_object * objects / seconds
    verdict = f"a pool of {pool.workers} workers is {speedup:.2f} times as fast as the caller alone"
    if seconds < MAX_WATCH_SECONDS and CLEARLY_SLOWER < speedup < CLEARLY_FASTER:
        return None, verdict
    if speedup >= MIN_SPEEDUP:
        return True, verdict
    if left is not None and left * (seconds / objects - per_object) < pool.start:
        return True, f"{verdict}, and little is left"
    return False, verdict


def _format_seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 1 else f"{1000 * seconds:.2g} ms"
