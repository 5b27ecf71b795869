"""Starts, pauses, resumes, cancels and forgets runs, and has failures tried again, by asking for it in the ledger.

The command and the admin call this and nothing else. Nothing runs here: a run that is due is begun by
`manage.py poolsave work` or a task, and the process that works on a run obeys within a second. Each change is one
UPDATE that states the statuses from which it is allowed. So of two people who change a run at once, one is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.db import IntegrityError, router, transaction
from django.db.models import Case, F, Q, QuerySet, Value, When
from django.db.models.fields.json import JSONField
from django.utils import timezone

from .._environment.project_settings import operating_settings
from ..errors import StatusConflict, UnknownCause, UnknownRun
from .causes import failures_of, matching
from .holders import STALE_AFTER, counts_as_dead
from .models import Failure, Lease, Run
from .registry import find_backfill

__all__ = ["cancel", "due", "find_run", "forget", "forget_failures", "pause", "recover", "resume", "retry", "start"]

Status = Run.Status
KNOWN = 10
"""Names of runs that an error lists."""
ADVICE = {
    Status.DUE: "it is about to go on; `manage.py poolsave work` runs what is due",
    Status.RUNNING: "a process works on it, until `manage.py poolsave pause`",
    Status.PAUSING: "wait until it is paused, which takes no longer than what it has begun",
    Status.PAUSED: "`manage.py poolsave resume` has it go on",
    Status.CANCELLING: "it ends when what it has begun is done",
    Status.CANCELLED: "begin anew after `manage.py poolsave forget`",
    Status.FINISHED: "begin anew after `manage.py poolsave forget`",
    Status.FINISHED_WITH_FAILURES: "retry its failures, or begin anew after `manage.py poolsave forget`",
}


def find_run(name: str, *, using: str | None = None) -> Run:
    """Give a run's row.

    Raises:
        UnknownRun: naming the latest runs.
    """
    runs = _runs(using)
    run = runs.filter(name=name).first()
    if run is None or run.name != name:  # some collations tell no case apart, nor spaces at the end
        raise UnknownRun(name, runs.db, tuple(runs.values_list("name", flat=True)[:KNOWN]))
    return run


def start(name: str, parameters: Mapping[str, Any] | None = None, *, by: str = "", using: str | None = None) -> Run:
    """Make a registered backfill's run, which is due.

    Args:
        parameters: for the backfill's form, as it is given them: texts by name, or lists of texts.
        by: who starts it.
        using: the alias of the ledger's database; by default the one to which routers have the ledger written.

    Raises:
        UnknownBackfill, InvalidParameters, InvalidOption: before anything is written.
        StatusConflict: if the run is there.
    """
    given = dict(parameters or {})
    find_backfill(name).rows(given)
    operating_settings()  # a runner that cannot be imported is refused before anything is written
    values = {"name": name, "parameters": _plain(given), "started_by": by[:200], "status": Status.DUE}
    runs = _runs(using)
    try:
        with transaction.atomic(runs.db):
            run = runs.create(**values)
            Lease.objects.using(runs.db).create(run=run)
    except IntegrityError:
        raise _conflict(find_run(name, using=runs.db), "be started") from None
    hand_over(run)
    return run


def pause(name: str, *, by: str = "", using: str | None = None) -> Run:
    """Have a run stop when what it has begun is done; one that has not begun is paused at once.

    Raises:
        UnknownRun, StatusConflict
    """
    allowed = Q(status__in=[Status.RUNNING, Status.DUE]) | Q(status=Status.PAUSED, stop_code="slice")
    ends = Case(When(status=Status.RUNNING, then=Value(Status.PAUSING)), default=Value(Status.PAUSED))
    reason = f"paused by {by}" if by else ""
    return _change(name, "be paused", allowed, using, stop_code="operator", stop_reason=reason, status=ends)


def resume(name: str, *, by: str = "", using: str | None = None) -> Run:
    """Have a paused run go on: it is due. So is one whose process has died.

    Raises:
        UnknownRun, StatusConflict
    """
    operating_settings()
    if (run := find_run(name, using=using)).status in Run.ACTIVE and _recovered(run, STALE_AFTER):
        run.refresh_from_db()
        if run.status == Status.DUE:
            return run
    reason = f"resumed by {by}" if by else ""
    allowed = Q(status=Status.PAUSED)
    run = _change(name, "be resumed", allowed, using, stop_code="", stop_reason=reason, status=Status.DUE)
    hand_over(run)
    return run


def cancel(name: str, *, by: str = "", using: str | None = None) -> Run:
    """End a run for good when what it has begun is done. What is committed stays.

    Raises:
        UnknownRun, StatusConflict
    """
    working = [Status.RUNNING, Status.PAUSING]
    allowed = Q(status__in=[*working, Status.DUE, Status.PAUSED])
    active = When(status__in=working, then=Value(Status.CANCELLING))
    # MySQL sees in each assignment what those before it have changed, so that the status is the last one.
    ended = Case(When(status__in=working, then=F("ended_at")), default=Value(timezone.now()))
    status = Case(active, default=Value(Status.CANCELLED))
    reason = f"cancelled by {by}" if by else ""
    return _change(
        name, "be cancelled", allowed, using, stop_code="operator", stop_reason=reason, ended_at=ended, status=status
    )


def retry(  # noqa: PLR0913  all but the first may be left out
    name: str,
    *,
    cause: str = "",
    since: datetime | timedelta | None = None,
    keys: Sequence[str] | None = None,
    limit: int | None = None,
    by: str = "",
    using: str | None = None,
) -> int:
    """Have the failures that wait tried again, and nothing else: the run is due for that.

    Args:
        cause: a SQLSTATE, a class with or without its module, a constraint, or a cause as `causes.grouped` has it.
        since: when they came: a time, or how long ago at most.
        keys: as `Failure.key` has them.
        limit: at most so many, those that came first.
        by: who asks.

    Returns:
        How many match. With none nothing changes. An on_commit callback that failed is not among them, since its object
        was saved.

    Raises:
        UnknownRun, StatusConflict
        UnknownCause: if none of the run's failures has it, nor one that is resolved.
    """
    operating_settings()
    run = find_run(name, using=using)
    _check_cause(run, cause)
    chosen = _chosen(cause, since, keys)
    found = failures_of(run, chosen)
    pks = list(found.values_list("pk", flat=True)[:limit]) if limit is not None else []
    count = len(pks) if limit is not None else found.count()
    if not count:
        return 0
    last = pks[-1] if pks else found.order_by("-pk").values_list("pk", flat=True)[0]
    # A session that goes on after a death tries the same ones, and none that have come since.
    what = Value({**chosen, "upto": last}, JSONField())
    allowed = Q(status__in=[Status.PAUSED, Status.FINISHED, Status.FINISHED_WITH_FAILURES])
    reason = f"retried by {by}" if by else ""
    run = _change(
        name, "try failures again", allowed, using, retry=what, stop_code="", stop_reason=reason, status=Status.DUE
    )
    hand_over(run)
    return count


def forget(name: str, *, using: str | None = None) -> None:
    """Delete all that the ledger has of a run. What it has saved stays, and a run of that name begins anew.

    Raises:
        UnknownRun
        StatusConflict: while it is worked on.
    """
    run = find_run(name, using=using)
    idle = Q(status__in=[status for status in Status if status not in Run.ACTIVE])
    with transaction.atomic(run._state.db):
        _change(name, "be forgotten", idle, run._state.db, heartbeat_at=None).delete()  # the UPDATE locks the row


def forget_failures(
    name: str, *, cause: str = "", since: datetime | timedelta | None = None, using: str | None = None
) -> int:
    """Give up failures: they stay in the ledger and count as resolved. Returns how many.

    Args: as those of `retry`, but for on_commit callbacks, which are among them.

    Raises:
        UnknownRun
        UnknownCause: as `retry`.
    """
    run = find_run(name, using=using)
    count = unresolved(run, cause=cause, since=since).update(resolved_at=timezone.now(), resolution="forgotten")
    settle(run)
    return count


def unresolved(run: Run, *, cause: str = "", since: datetime | timedelta | None = None) -> QuerySet[Failure]:
    """Give a run's failures that are not resolved, in the order in which they came. Arguments as those of `retry`.

    Raises:
        UnknownCause: as `retry`.
    """
    _check_cause(run, cause)
    return failures_of(run, _chosen(cause, since, None), kinds=tuple(Failure.Kind))


def _check_cause(run: Run, cause: str) -> None:
    failures = Failure.objects.using(run._state.db).filter(run_id=run.pk)
    if cause and not failures.filter(matching(cause)).exists():
        known = failures.order_by("cause").values_list("cause", flat=True).distinct()[:KNOWN]
        raise UnknownCause(run.name, cause, tuple(known))


def settle(run: Run) -> None:
    """Call a run finished that has ended with failures, if none of them waits any more."""
    failures = Failure.objects.using(run._state.db).filter(run_id=run.pk, resolved_at=None)
    if not failures.exists():
        _runs(run._state.db).filter(pk=run.pk, status=Status.FINISHED_WITH_FAILURES).update(status=Status.FINISHED)


def recover(*, stale_after: timedelta = STALE_AFTER, using: str | None = None) -> list[Run]:
    """Have runs go on whose process has died: they are due, or paused or cancelled if that had been asked for.

    Args:
        stale_after: without a heartbeat for so long, a process counts as dead. On this machine it is looked for, too:
            one that is seen to run may be silent ten times as long. If it was only frozen, it commits nothing more.

    Returns:
        Those whose status has changed.
    """
    recovered = [run for run in _runs(using).filter(status__in=Run.ACTIVE) if _recovered(run, stale_after)]
    for run in recovered:
        run.refresh_from_db()
    return recovered


def due(*, using: str | None = None) -> QuerySet[Run]:
    """Give the runs that wait to be begun or to go on, those that wait longest first."""
    return _runs(using).filter(Q(status=Status.DUE) | Q(status=Status.PAUSED, stop_code="slice")).order_by("pk")


def _runs(using: str | None) -> QuerySet[Run]:
    return Run.objects.using(using or router.db_for_write(Run))


def _recovered(run: Run, stale_after: timedelta) -> bool:
    """End the turn of a process that has died. False if it was not dead."""
    last = run.heartbeat_at or run.started_at
    if not counts_as_dead(run.holder, None if last is None else timezone.now() - last, stale_after):
        return False
    leases = Lease.objects.using(run._state.db).filter(run_id=run.pk)
    # Whatever has a later heartbeat is not dead, and another session has another holder.
    same = {"heartbeat_at": run.heartbeat_at, "holder": run.holder, "status__in": Run.ACTIVE}
    with transaction.atomic(leases.db):
        # As in a session, the run is locked before its lease, or two of them could wait for each other.
        changed = _runs(leases.db).filter(pk=run.pk, **same).update(**_after_death())
        if changed:
            leases.select_for_update().first()  # waits for chunks in flight, and later ones do not commit
            leases.update(generation=F("generation") + 1)
    if changed:
        run.refresh_from_db()
        hand_over(run)
    return bool(changed)


def _after_death() -> dict[str, Any]:
    running, cancelling = When(status=Status.RUNNING, then=Value("died")), Q(status=Status.CANCELLING)
    return {
        "holder": "",
        "stop_code": Case(running, default=F("stop_code")),
        "ended_at": Case(When(cancelling, then=Value(timezone.now())), default=F("ended_at")),
        "status": Case(
            When(status=Status.RUNNING, then=Value(Status.DUE)),
            When(cancelling, then=Value(Status.CANCELLED)),
            default=Value(Status.PAUSED),
        ),
    }


def _change(name: str, action: str, allowed: Q, using: str | None, **values: Any) -> Run:
    # The UPDATE comes first. In a transaction that has read before, as the admin's would have, SQLite refuses an UPDATE
    # while another connection writes. On MariaDB = does not tell case apart, nor spaces at the end; LIKE BINARY does.
    runs = _runs(using)
    changed = runs.filter(allowed, name=name, name__endswith=name).update(**values)
    run = find_run(name, using=runs.db)
    if not changed:
        raise _conflict(run, action)
    return run


def _conflict(run: Run, action: str) -> StatusConflict:
    return StatusConflict(run.name, action, run.status, ADVICE[Status(run.status)])


def _chosen(cause: str, since: datetime | timedelta | None, keys: Sequence[str] | None) -> dict[str, Any]:
    since = timezone.now() - since if isinstance(since, timedelta) else since
    chosen = {"cause": cause, "since": since and since.isoformat(), "keys": None if keys is None else list(keys)}
    return {name: value for name, value in chosen.items() if value not in (None, "")}


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Give parameters as JSON has them. Forms take dates and numbers as texts, too."""
    result: dict[str, Any] = json.loads(json.dumps(parameters, cls=DjangoJSONEncoder))
    return result


def hand_over(run: Run) -> None:
    """Tell the runner of the settings, if there is one, that a run is due."""
    enqueue = operating_settings()["runner"]
    if enqueue is not None and run.status == Status.DUE:
        transaction.on_commit(lambda: enqueue(run.name, run._state.db), using=run._state.db)
