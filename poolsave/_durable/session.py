"""A session of a durable run, in the caller: whose turn it is, from the first look to the last word.

`look` refuses what cannot go on, before anything starts, and writes nothing. `open` takes the lease: from here on
nothing of an older session commits. `beat` says at most once a second that the caller lives, and learns whether it is
to stop. `end` says how the run is left, and nothing of this session commits from here on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from django.db import connections, transaction
from django.db.models import F
from django.utils import timezone

from ..durable import Run as RunSpec
from ..errors import LeaseLost, RunBusy, RunConflict, StatusConflict
from ..ledger.holders import counts_as_dead, describe, holder_here, is_this_process
from ..throttles._reading import Heartbeats
from .identity import changed_source, first_difference
from .recorder import LEASE, lease_query

if TYPE_CHECKING:
    from ..ledger.models import Run

CANCELLED_ADVICE = "begin anew by poolsave.Run(name, fresh=True)"
_open: set[tuple[int, str]] = set()
"""Runs and holders of the sessions in this process that have not ended."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a run has to do, as it began."""

    high: str
    """The last key; empty for an input that is not a queryset."""
    total: int | None


class Session:
    """The caller's turn on a run."""

    def __init__(self, spec: RunSpec, alias: str, identity: Mapping[str, str], *, exactly_once: bool) -> None:
        self.spec = spec
        self.alias = alias
        self._identity = dict(identity)
        self._exactly_once = exactly_once
        self.generation = 0
        self._holder = ""
        self.run_id = 0
        self.retry: Mapping[str, Any] | None = spec.retry
        """Which failures this session tries again, and nothing else; or None."""
        self.bounds = Bounds("", None)
        self.resumed = False
        self.heartbeats: Heartbeats | None = None
        """Those that throttles go by."""
        self._first_heartbeat: datetime | None = None
        self.was_complete = False
        """Whether everything had ended before this session, which tries failures again."""

    def look(self) -> Run | None:
        """Give the row as it is, if there is one that can go on.

        Raises:
            RunConflict: if it cannot.
        """
        run: Run | None = _runs(self.alias).filter(name=self.spec.name).first()
        if run is not None:
            self._check(run)
        return run

    def has_ended(self, run: Run) -> bool:
        """Whether there is nothing left to run."""
        wants_retry = self.spec.retry is not None or run.retry is not None
        return run.status in _finished() and not wants_retry and not self.spec.fresh

    def open(self, bounds: Callable[[], Bounds]) -> Run:
        """Take the lease, and give the row as it is now. `bounds` is called for a run that begins.

        It waits for transactions in flight of a session whose process has died.

        Raises:
            RunConflict: if another process works on it, or it cannot go on.
        """
        # Before the row is made, since it may fail, and before any lock, since it may take long.
        first = bounds() if self._begins(_runs(self.alias).filter(name=self.spec.name).first()) else None
        run = self._row()
        if first is None and self._begins(run):  # someone has forgotten it meanwhile
            first = bounds()
        try:
            with transaction.atomic(using=self.alias, durable=True):
                run = self._locked(run.pk)
                self._check(run)
                if not self.has_ended(run):
                    self._take(run, first)
        except BaseException:
            self.release()
            raise
        if run.status == run.Status.CANCELLED:
            raise StatusConflict(run.name, "go on", run.status, CANCELLED_ADVICE)
        self._know(run)
        return run

    def _begins(self, run: Run | None) -> bool:
        return run is None or run.started_at is None or self.spec.fresh

    def _row(self) -> Run:
        from ..ledger.models import Lease

        run: Run
        run, _new = _runs(self.alias).get_or_create(name=self.spec.name)
        Lease.objects.using(self.alias).get_or_create(run_id=run.pk)
        return run

    def _locked(self, pk: int) -> Run:
        # The first statement writes, so that SQLite does not let two read before one of them waits for the other.
        if connections[self.alias].vendor == "sqlite":
            _runs(self.alias).filter(pk=pk).update(holder=F("holder"))
        run: Run = _runs(self.alias).select_for_update().get(pk=pk)
        return run

    def _check(self, run: Run) -> None:
        if run.name != self.spec.name:  # some collations tell no case apart, nor spaces at the end
            raise RunConflict(run.name, "name", run.name, self.spec.name)
        if run.status in run.ACTIVE and not (self._was_left(run) or self._is_dead(run)):
            raise RunBusy(run.name, describe(run.holder), run.heartbeat_at)
        if self.spec.fresh:
            return
        if run.status == run.Status.CANCELLED:
            raise StatusConflict(run.name, "go on", run.status, CANCELLED_ADVICE)
        if self.spec.only_due and not _is_due(run):
            raise StatusConflict(run.name, "be worked on", run.status, "it is not due")
        difference = first_difference(run.identity, self._identity)
        if difference is not None:
            raise RunConflict(run.name, *difference)

    def _was_left(self, run: Run) -> bool:
        """Whether a session of this very process was its last one, and has broken down."""
        return is_this_process(run.holder) and (run.pk, run.holder) not in _open

    def _is_dead(self, run: Run) -> bool:
        silent = None if run.heartbeat_at is None else timezone.now() - run.heartbeat_at
        return counts_as_dead(run.holder, silent, timedelta(seconds=self.spec.stale_after))

    def _take(self, run: Run, first: Bounds | None) -> None:
        from ..ledger.models import Lease

        # Waits for transactions in flight of the session before, which hold it shared. Once the generation has grown,
        # what else that session sends finds no lease, and rolls back.
        lease = Lease.objects.using(self.alias).select_for_update().get(run_id=run.pk)
        lease.generation += 1
        lease.save(using=self.alias)
        self.generation, self._holder = lease.generation, holder_here(lease.generation)
        if run.status == run.Status.CANCELLING and not self.spec.fresh:  # its process died before it could cancel it
            run.status, run.ended_at = run.Status.CANCELLED, timezone.now()
            run.save(using=self.alias)
            return
        self.run_id = run.pk
        _open.add((run.pk, self._holder))  # before it is committed, so that no other thread takes it for left
        if self.spec.fresh:
            self._forget(run)
        if first is not None and self._begins(run):  # another process may have begun it since `bounds()`
            self._begin(run, first)
        self.retry = run.retry if self.spec.retry is None else self.spec.retry
        self.was_complete = self.retry is not None and run.ended_at is not None
        run.status, run.stop_code, run.stop_reason = run.Status.RUNNING, "", ""
        run.holder, run.retry = self._holder, self.retry
        run.ended_at = run.ended_at if self.was_complete else None
        run.exactly_once = run.exactly_once and self._exactly_once
        run.started_by = self.spec.started_by or run.started_by
        run.started_at = run.heartbeat_at = timezone.now()
        run.save(using=self.alias)

    def _begin(self, run: Run, first: Bounds) -> None:
        run.identity, run.high, run.total = self._identity, first.high, first.total
        run.exactly_once = self._exactly_once
        run.done = run.failed = run.skipped = 0
        run.came_later, run.seconds, run.rate = None, 0.0, None

    def _forget(self, run: Run) -> None:
        from ..ledger.models import Chunk, Failure

        for model in (Chunk, Failure):
            model.objects.using(self.alias).filter(run_id=run.pk).delete()

    def _know(self, run: Run) -> None:
        changed_source(run.name, run.identity, self._identity)
        self.run_id, self._first_heartbeat = run.pk, run.heartbeat_at
        self.bounds = Bounds(run.high, run.total)
        self.resumed = run.done + run.failed + run.skipped > 0

    @property
    def is_open(self) -> bool:
        """Whether it has the run, for all that it knows."""
        return (self.run_id, self._holder) in _open

    def release(self) -> None:
        """Have another session of this process take the run over at once, if it was left as running."""
        _open.discard((self.run_id, self._holder))

    def lost(self) -> LeaseLost:
        """Give the error for a session whose run another one has."""
        self.release()
        return LeaseLost(self.spec.name)

    def followed(self) -> Heartbeats:
        """Give the heartbeats of the open session, which every `beat` adds to from now on."""
        row = _runs(self.alias).filter(pk=self.run_id)
        self.heartbeats = Heartbeats(row.values_list("heartbeat_at"), self.alias)
        if self._first_heartbeat is not None:
            self.heartbeats.wrote(self._first_heartbeat)
        return self.heartbeats

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Open a transaction that holds the lease. Nobody can take the run over before the transaction ends.

        Raises:
            LeaseLost: if another session has it.
        """
        connection = connections[self.alias]
        with transaction.atomic(using=self.alias, durable=True):
            with connection.cursor() as cursor:
                if connection.vendor == "sqlite":  # a write, as in `_locked`
                    cursor.execute(TOUCH_LEASE, [self.run_id, self.generation])
                    is_mine = cursor.rowcount == 1
                else:
                    cursor.execute(lease_query(connection.vendor), [self.run_id, self.generation])
                    is_mine = cursor.fetchone() is not None
            if not is_mine:
                raise self.lost()
            yield

    def beat(self, **columns: Any) -> tuple[str, str, str]:
        """Say that the caller lives, and give status, stop code and reason: someone may have asked for a pause.

        Raises:
            LeaseLost: if another session has the run.
        """
        mine, now = _runs(self.alias).filter(pk=self.run_id, holder=self._holder), timezone.now()
        if mine.update(heartbeat_at=now, **columns) and self.heartbeats is not None:
            self.heartbeats.wrote(now)
        asked: tuple[str, str, str] | None = mine.values_list("status", "stop_code", "stop_reason").first()
        if asked is None:
            raise self.lost()
        return asked

    def renew(self) -> None:
        """Let nothing of this session commit that workers have begun so far, and stay the holder.

        Raises:
            LeaseLost: if another session has the run.
        """
        from ..ledger.models import Lease

        with transaction.atomic(using=self.alias, durable=True):
            mine = Lease.objects.using(self.alias).filter(run_id=self.run_id)
            if connections[self.alias].vendor == "sqlite":
                mine.update(generation=F("generation"))  # a write, as in `_locked`
            lease = mine.select_for_update().get()
            if lease.generation != self.generation:
                raise self.lost()
            mine.update(generation=self.generation + 1)
        self.generation += 1

    def end(self, **columns: Any) -> None:
        """Leave the run with these values, and let nothing of this session commit any more.

        Raises:
            LeaseLost: if another session has the run.
        """
        from ..ledger.models import Lease

        with transaction.atomic(using=self.alias, durable=True):
            mine = _runs(self.alias).filter(pk=self.run_id, holder=self._holder)
            if not mine.update(holder="", **columns):
                raise self.lost()
            # The run before its lease, as in `open`: in another order two sessions could wait for each other. And FOR
            # UPDATE before the UPDATE, which on PostgreSQL would not wait for the workers' FOR KEY SHARE: it changes no
            # key.
            list(Lease.objects.using(self.alias).select_for_update().filter(run_id=self.run_id))
            Lease.objects.using(self.alias).filter(run_id=self.run_id).update(generation=F("generation") + 1)
        self.release()


TOUCH_LEASE = f"UPDATE {LEASE} SET generation = generation WHERE run_id = %s AND generation = %s"  # noqa: S608


def _runs(alias: str) -> Any:
    from ..ledger.models import Run

    return Run.objects.using(alias)


def _is_due(run: Run) -> bool:
    if run.status == run.Status.PAUSED:
        return run.stop_code == "slice"
    return run.status == run.Status.DUE or run.status in run.ACTIVE  # whose process has died


def _finished() -> tuple[str, ...]:
    from ..ledger.models import Run

    return (Run.Status.FINISHED, Run.Status.FINISHED_WITH_FAILURES)
