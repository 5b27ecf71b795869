"""Whether a run with `executor="auto"` goes on in the caller's thread or in a pool. Pure: figures in, decisions out.

The run starts serially, so that few objects cost what a loop costs. It is worth a pool when what is left, sped up by as
much as may well be expected, saves more than it costs to start one. What cannot be known before is tried, and given up.
"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_START_SECONDS = {"fork": 0.04, "forkserver": 0.8, "spawn": 1.5}
"""Seconds until workers work, by start method, before any has been measured in this process."""
MIN_SAMPLE_SECONDS = 0.04
"""Seconds of work, without the first slice, after which its speed is known well enough."""
MAX_TRIAL_SHARE = 0.03
"""Share of the time that the run takes at least, which may be spent on what may turn out to be a mistake."""
DISPATCH = 0.00002
"""Seconds that the caller has to do with each object of a pool."""
SHARE_OF_BOUND = 0.5
"""How much of the speed-up that is possible at most is expected: there are things that nobody has measured, such as a
database server on the same machine, which wants the same CPUs."""
LOCKED, LOCKED_IF_SHORT = 0.5, 0.28
"""Share of an object's time inside SQLite's only write lock from which a pool is not expected to be faster than the
caller: who waits for that lock sleeps, and asks again. The second is for objects of less than a millisecond, which is
as long as the shortest of these sleeps; two workers with trivial saves were slower from there on."""
SHORT = 0.001
"""Seconds; see above."""
SHORTEST, LONGEST = 0.15, 0.6
"""Seconds for which a pool is watched until it is judged: if its speed is clearly another, and at most."""
CLEARLY_FASTER, CLEARLY_SLOWER = 1.3, 0.5
"""How many times as fast is clear after a short look. To give up a pool that is only slow to get going costs more than
to watch it for longer."""
MIN_SPEEDUP = 1.05
"""How many times as fast as the caller alone a pool has to be to be kept."""
RETRY_AFTER = 5.0
"""Seconds after which a pool that was given up may be tried again; twice as long after every further time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalMeasurement:
    """What is known of the work after some slices of it have run in the caller's thread."""

    slices: int
    seconds: float
    """How long all of them took."""
    evidence: float
    """How long those took from which `per_object` is known: all but the first, which imports and connects."""
    per_object: float
    """Seconds that the function and its transaction take for one object."""
    computing: float
    """Share of that in which this process computes; in the rest it waits for others."""
    locked: float
    """Share of that inside transactions on a SQLite file, of which there is one at a time."""
    left: int
    """Objects that are still to come, or as many as have been if nobody knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolEstimate:
    """What a pool would be."""

    workers: int
    cpus: int
    start: float
    """Seconds until its workers work."""
    given_up: int = 0
    """How many times it has been too slow in this run."""
    since: float = 0.0
    """Seconds since it was given up last."""


def max_speedup(work: LocalMeasurement, ride: PoolEstimate) -> float:
    """How many times as fast a pool can be at most: as there are workers, CPUs for what computes, and one at a time
    for what is locked."""
    by_cpus = ride.cpus / work.computing if work.computing > 0 else ride.workers
    by_lock = 1 / work.locked if work.locked > 0 else ride.workers
    return max(1.0, min(ride.workers, by_cpus, by_lock))


def should_start_pool(work: LocalMeasurement, ride: PoolEstimate) -> tuple[bool, str]:
    """Say whether to go over to a pool now, and why."""
    rest = work.left * work.per_object
    if work.evidence < MIN_SAMPLE_SECONDS and (work.slices != 1 or ride.start > MAX_TRIAL_SHARE * work.seconds):
        return False, "too little has run to say anything"
    locked = work.locked >= (LOCKED_IF_SHORT if work.per_object < SHORT else LOCKED)
    if not locked and max_speedup(work, ride) <= MIN_SPEEDUP:
        return False, f"each object computes for {work.computing:.0%} of its time, and there is one CPU"
    if ride.given_up or locked:
        return _on_trial(rest, work, ride)
    if rest - _in_pool(work, ride) <= ride.start:
        return (
            False,
            f"at {_time(work.per_object)} each, what was left was not worth {_time(ride.start)} to start a pool",
        )
    return True, f"{work.left} objects left at {_time(work.per_object)} each are worth a pool"


def _on_trial(rest: float, work: LocalMeasurement, ride: PoolEstimate) -> tuple[bool, str]:
    """It is not to be expected that a pool is faster; a trial that costs little beside what is left may tell."""
    if ride.given_up:
        why = "a pool was no faster than the caller alone"
    else:
        why = f"{work.locked:.0%} of each object's time goes by inside SQLite's one write lock"
    waited = not ride.given_up or ride.since >= RETRY_AFTER * 2 ** (ride.given_up - 1)
    if waited and ride.start + LONGEST < MAX_TRIAL_SHARE * rest:
        return True, f"{why}, but so much is left that a trial of a pool costs little"
    return False, why


def _in_pool(work: LocalMeasurement, ride: PoolEstimate) -> float:
    speedup = 1 + SHARE_OF_BOUND * (max_speedup(work, ride) - 1)
    return work.left * max(DISPATCH, work.per_object / speedup)


def should_keep_pool(
    alone: float, objects: int, seconds: float, *, left: int | None, ride: PoolEstimate
) -> tuple[bool | None, str]:
    """Say whether to keep a pool that has ended `objects` in `seconds`, where the caller alone takes `alone` seconds
    for each; None: not yet."""
    if objects < 2 * ride.workers or seconds < SHORTEST:
        return None, "the pool is being measured"
    speedup = alone * objects / seconds
    told = f"a pool of {ride.workers} workers is {speedup:.2f} times as fast as the caller alone"
    if seconds < LONGEST and CLEARLY_SLOWER < speedup < CLEARLY_FASTER:
        return None, told
    if speedup >= MIN_SPEEDUP:
        return True, told
    if left is not None and left * (seconds / objects - alone) < ride.start:
        return True, f"{told}, and little is left"
    return False, told


def _time(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 1 else f"{1000 * seconds:.2g} ms"
