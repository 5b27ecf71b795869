"""What a run's figures mean for a reader: how far it is, how long it will take, whether its caller is still there.

For display only: nothing is decided by it.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from django.utils import timezone
from django.utils.timesince import timesince, timeuntil

from .holders import STALE_AFTER, describe, is_gone
from .models import Run


def ended_objects(run: Run) -> int:
    """Give how many objects have ended, in any way."""
    return run.done + run.failed + run.skipped


def counts(run: Run) -> str:
    """Give the figures of a run as one line."""
    ended = f"{ended_objects(run):,}"
    parts = [ended if run.total is None else f"{ended} of {run.total:,}"]
    failed = "failed, all resolved" if run.status == Run.Status.FINISHED else "failed"
    parts += [f"{number:,} {name}" for number, name in ((run.failed, failed), (run.skipped, "skipped")) if number]
    return " · ".join(parts)


def remaining(run: Run) -> timedelta | None:
    """Give the time that is left at the present rate, or None if that is not known."""
    if run.status != Run.Status.RUNNING or not run.rate or run.total is None:
        return None
    return timedelta(seconds=max(run.total - ended_objects(run), 0) / run.rate)


def pace(run: Run) -> str:
    """Give the rate and the time that is left, as far as they are known."""
    if run.status not in Run.ACTIVE or not run.rate or has_died(run):
        return ""
    rate = f"{run.rate:,.0f} a second" if run.rate >= 10 else f"{run.rate:.1f} a second"
    left = remaining(run)
    return rate if left is None else f"{rate} · {_duration(left)} left"


def _duration(left: timedelta) -> str:
    if left < timedelta(minutes=1):
        return "less than a minute"
    now = timezone.now()
    return timeuntil(now + left, now, depth=1)


def has_died(run: Run) -> bool:
    """Whether the process that works on a run was one of this machine, and is not there any more."""
    return run.status in Run.ACTIVE and is_gone(run.holder)


def silence(run: Run) -> str:
    """Give for how long nothing has been heard of a run that should be active, or "" if it is well."""
    last = run.heartbeat_at or run.started_at
    if run.status not in Run.ACTIVE or last is None or _age(last) < STALE_AFTER:
        return ""
    return timesince(last, depth=1)


def needs_rescue(run: Run) -> bool:
    """Whether a run that should be active has lost its process, or seems to have."""
    return has_died(run) or bool(silence(run))


def _age(moment: datetime) -> timedelta:
    return timezone.now() - moment


def reason(run: Run) -> str:
    """Give why a run is as it is: why it stopped, why it is slow, or that its caller is silent."""
    if has_died(run):
        return f"{describe(run.holder)}, has ended in the middle of it"
    if silent := silence(run):
        return f"no sign of life for {silent}"
    if run.status == Run.Status.RUNNING:
        return run.throttle
    return run.stop_reason or run.stop_code
