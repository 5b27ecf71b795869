"""What the caller writes into the ledger: failures and ranges that no worker has recorded, heartbeats, and the end.

Written at most once a second, or when a batch is full. If this caller dies before, those objects run again, which is
exactly once all the same: of a failure nothing is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from django.db import Error, connections
from django.db.models import F
from django.utils import timezone

from .._db.error_codes import hit_time_limit, is_transient
from .._db.inspection import reconnecting
from .._engine.throttling import ThrottleMeter
from .._reports.durable import DurableRun
from .._runtime.foreign_exceptions import is_a
from ..errors import RowGone, ValueLost
from ..outcomes import Outcome, Status
from .chunks import ChunkTable, Ended, Entry, sums
from .failures import failure_of, in_ascii, update_failure
from .keys import digest_of
from .ranges import FIRST, Range, gaps_between
from .session import Session
from .sources import Place
from .values import storable

T = TypeVar("T")
INTERVAL = 1.0
"""Seconds between two heartbeats."""
PAUSE = 0.1
"""Seconds between two tries to write what must be written before the session goes on."""
FULL = 500
"""Entries that are written at once, whenever the next heartbeat is due."""
MERGE_AFTER = 2000
"""Rows of workers after which they are merged: with one transaction per object each object adds one."""
SMOOTHING = 0.7
"""Weight of the past in the objects per second."""


class CallbacksLost(ValueLost):
    """The object is saved, but its `on_commit` callbacks may not have run before its worker ended."""

    def __str__(self) -> str:
        lost = "its on_commit callbacks may not have run, if it has any"
        return f"object {self.index} is saved, but its worker has ended, and {lost}"


class Stop(NamedTuple):
    """Why a session is to end: a stop code of the ledger, and the reason in words."""

    code: str
    reason: str


class Bookkeeping:
    """Of one session."""

    def __init__(self, session: Session, *, merges: bool, meter: ThrottleMeter | None = None) -> None:
        """`merges`: ranges of workers are joined while the run goes on. Not where a chunk can be delivered twice:
        the row of the first delivery refuses the second. `meter`: of the throttles, whose reason is written too."""
        self._session = session
        self._meter = meter
        self._table = ChunkTable(session)
        self._merges = merges
        self._entries: list[Entry] = []
        self._retried: list[tuple[int, Outcome[Any]]] = []
        self._rows = 0
        self._due = 0.0
        self._busy_since: float | None = None
        """When the database first refused, for the time being, what has not been written since."""
        self._began = time.monotonic()
        self._beat_at = time.monotonic()
        self._ended_at_beat = 0
        self._any_ended = False
        self._rate: float | None = None
        self._seconds = 0.0
        self.closed = True
        """Whether nothing is written any more."""
        self.cancelling = False
        self.state = DurableRun(session.spec.name)

    def open(self, row: Any) -> list[Range]:
        """Give what has ended, by the row of the run that `Session.open` gave."""
        self._know(row)
        if not self._session.generation:
            self.state.unresolved = self._patiently(self._table.unresolved)
            return []
        self.closed = False
        ranges = self._patiently(self._table.merge_all)
        counts = sums(ranges)
        self.state.done, self.state.failed, self.state.skipped = counts["done"], counts["failed"], counts["skipped"]
        self.state.resumed = self._session.resumed or bool(ranges)
        self._due = time.monotonic() + INTERVAL
        self._beat_at = time.monotonic()
        return ranges

    def _know(self, row: Any) -> None:
        state, self._seconds = self.state, row.seconds
        state.status, state.stop_code, state.stop_reason = str(row.status), row.stop_code, row.stop_reason
        state.done, state.failed, state.skipped = row.done, row.failed, row.skipped
        state.total, state.came_later, state.exactly_once = row.total, row.came_later, row.exactly_once

    def waiting(self, retry: Mapping[str, Any]) -> tuple[Iterator[tuple[int, str]], int]:
        """Give the rows and keys of the failures that a retry is about, and how many there are."""
        return self._table.waiting(retry)

    # While it goes on.

    @property
    def seconds_until_due(self) -> float | None:
        """How long nothing is to be written; None: for ever."""
        return None if self.closed else max(0.0, self._due - time.monotonic())

    def add_range(self, ended: Range) -> None:
        """Record a range without a row."""
        self._entries.append(Entry(ended))

    def count(self, done: int, rows: int) -> None:
        """Take note of objects whose rows workers have written."""
        self._any_ended = True
        if self._session.retry is None:
            self.state.done += done
            self._rows += rows

    def add(self, place: Place, outcome: Outcome[Any], *, recorded: bool) -> None:
        """Take note of an outcome. `recorded`: that it has ended is recorded by a worker, and so is its failure."""
        self._any_ended = True
        gone = outcome.status is Status.SKIPPED
        if place.failures is not None:
            if not (outcome.ok and recorded):
                self._retried.append((place.failures[0], outcome))
            return
        counts = {"done": int(outcome.ok), "skipped": int(gone), "failed": int(not (outcome.ok or gone))}
        for name, number in counts.items():
            setattr(self.state, name, getattr(self.state, name) + number)
        ended = None if recorded else self._range(place, **counts)
        failure = None if gone or (recorded and not outcome.ok) else self._failure(place.keys[0], outcome)
        if ended is not None or failure is not None:
            self._append(Entry(ended, failure))

    def _append(self, entry: Entry) -> None:
        last = self._entries[-1] if self._entries else Entry(None)
        if last.ended and entry.ended and not (last.failure or entry.failure) and last.ended.comes_before(entry.ended):
            self._entries[-1] = Entry(last.ended.joined(entry.ended))
        else:
            self._entries.append(entry)

    def _range(self, place: Place, **counts: int) -> Range:
        digest = None if self._session.spec.key is None else digest_of(place.keys)
        return Range(place.sequence, place.low, place.keys[0], digest=digest, **counts)

    def _failure(self, key: str, outcome: Outcome[Any]) -> Any:
        from ..ledger.models import Failure

        kind = Failure.Kind.ERROR
        if outcome.ok:
            if outcome.error is None or (is_a(outcome.error, ValueLost) and not is_a(outcome.error, CallbacksLost)):
                return None
            kind = Failure.Kind.CALLBACK
        elif outcome.status is Status.LOST:
            kind = Failure.Kind.LOST
        return failure_of(
            self._session.run_id,
            key,
            outcome.error,
            traceback=outcome.traceback,
            kind=kind,
            attempts=max(1, outcome.attempts),
        )

    def keep(self, horizon: Callable[[], int | None]) -> Stop | None:
        """Write what is due. Gives why the session is to end, if it is.

        A database that is too busy gets it a second later, for up to `stale_after` seconds.
        `horizon`: the least sequence that a transaction in flight can have, or None.

        Raises:
            LeaseLost: if another session has the run.
            Error: if the ledger cannot be written.
        """
        if self.closed:
            return None
        is_full = len(self._entries) + len(self._retried) >= FULL and self._busy_since is None
        is_due = time.monotonic() >= self._due
        try:
            if is_full or is_due:
                self._once(self._flush)
            return self._keep_due(horizon) if is_due else None
        except Error as error:
            if not self._can_wait(error):
                raise
            return None

    def _keep_due(self, horizon: Callable[[], int | None]) -> Stop | None:
        if self._merges and self._rows >= MERGE_AFTER:
            self._merge(horizon())
        asked = self._beat()
        self._due, self._busy_since = time.monotonic() + INTERVAL, None
        return asked

    def _can_wait(self, error: Error) -> bool:
        """Put off what the database had no time for. False: it will not have, or it had none for too long."""
        now = time.monotonic()
        self._due, self._busy_since = now + INTERVAL, now if self._busy_since is None else self._busy_since
        return _passes(error) and now - self._busy_since <= self._session.spec.stale_after

    def _merge(self, horizon: int | None) -> None:
        if horizon is not None:
            self._rows = 0
            self._once(lambda: self._table.merge_below(horizon))

    def _beat(self) -> Stop | None:
        from ..ledger.models import Run

        throttle = "" if self._meter is None else self._meter.reason
        status, code, reason = self._once(lambda: self._session.beat(**self._progress(), throttle=throttle))
        self.state.status = status
        if status == Run.Status.CANCELLING:
            self.cancelling = True
            return Stop("operator", reason or "cancelled by an operator")
        if status == Run.Status.PAUSING:
            return Stop(code or "operator", reason or "paused by an operator")
        seconds = self._session.spec.slice
        # Without an object that has ended, slices shorter than the start of workers would go on for ever.
        if seconds is not None and self._any_ended and time.monotonic() - self._began >= seconds:
            return Stop("slice", f"its slice of {seconds:g} seconds was over")
        return None

    def _progress(self) -> dict[str, Any]:
        now, state = time.monotonic(), self.state
        ended, passed = state.done + state.failed + state.skipped, now - self._beat_at
        if passed > INTERVAL / 2:
            rate = max(0, ended - self._ended_at_beat) / passed if self._ended_at_beat else None
            if rate is not None:
                self._rate = rate if self._rate is None else SMOOTHING * self._rate + (1 - SMOOTHING) * rate
            self._ended_at_beat = ended
        self._seconds += passed
        self._beat_at = now
        counts = {"done": state.done, "failed": state.failed, "skipped": state.skipped}
        return {**counts, "seconds": self._seconds, "rate": self._rate}

    def _flush(self) -> None:
        if self._entries:
            self._table.write(self._entries)
            self._entries = []
        if self._retried:
            self._write_retried()
            self._retried = []

    def _write_retried(self) -> None:
        from ..ledger.models import Failure

        with self._session.transaction():
            for failure, outcome in self._retried:
                row = Failure.objects.using(self._session.alias).filter(pk=failure, resolved_at=None)
                if outcome.ok or is_a(outcome.error, RowGone):
                    row.update(resolved_at=timezone.now(), resolution="retried" if outcome.ok else "gone")
                else:
                    kind = Failure.Kind.LOST if outcome.status is Status.LOST else Failure.Kind.ERROR
                    again = {"attempts": F("attempts") + max(1, outcome.attempts), "kind": kind}
                    update_failure(row, outcome.error, outcome.traceback, **again)

    def ended(self, place: Place) -> Ended:
        """Say what was committed of a chunk. See `ChunkTable.ended`."""
        return self._patiently(lambda: self._table.ended(place))

    def _patiently(self, call: Callable[[], T]) -> T:
        """Call it until the database has time for it, for up to `stale_after` seconds: it can be repeated."""
        until = time.monotonic() + self._session.spec.stale_after
        while True:
            try:
                return self._once(call)
            except Error as error:
                if not _passes(error) or time.monotonic() >= until:
                    raise
            time.sleep(PAUSE)

    def _once(self, call: Callable[[], T]) -> T:
        """Call it, and once more if the connection was lost and there is another one: each call can be repeated."""
        connection = connections[self._session.alias]
        was_open = connection.connection is not None
        try:
            return reconnecting(connection.alias, call)
        finally:
            if connection.vendor == "sqlite" and not was_open:
                connection.close()  # workers that replace others are forked only while no file is open

    # The end.

    def renew_lease(self) -> None:
        """Let nothing commit of what workers have begun so far."""
        if not self.closed:
            self._patiently(self._session.renew)

    def give_up(self) -> None:
        """Write nothing any more."""
        self.closed = True

    def leave(self, reason: str) -> None:
        """Pause the run of a session that could not end, by a new connection, and write nothing else.

        What no worker has recorded runs again. If this fails, too, the run is left as it is, for a take-over.
        """
        self.closed = True
        connections[self._session.alias].close()
        try:
            self._once(lambda: self._session.end(**self._cut_off(reason)))
        except Exception:  # of the database, or LeaseLost
            return
        self.state.status, self.state.stop_code, self.state.stop_reason = "paused", "error", reason

    def _cut_off(self, reason: str) -> dict[str, Any]:
        from ..ledger.models import Run

        paused = {"status": Run.Status.PAUSED, "stop_code": "error", "stop_reason": in_ascii(reason)[:1000]}
        return {**paused, "throttle": "", "heartbeat_at": timezone.now()}

    def end(self, code: str, reason: str, *, input_ended: bool, count_later: Callable[[str], int | None]) -> None:
        """Write what is left, and how the run is left. `count_later` is called for a run that is complete.

        Raises:
            LeaseLost: if another session has the run.
            Error: if the ledger cannot be written.
        """
        if self.closed:
            return
        # First what is left: the ranges say whether the run is complete, and the failures how it has ended.
        self._patiently(self._flush)
        ranges = self._patiently(self._table.merge_all)
        state, counts = self.state, sums(ranges)
        state.done, state.failed, state.skipped = counts["done"], counts["failed"], counts["skipped"]
        if self._session.retry is not None and input_ended:
            code, reason = "operator", "its failures were tried again, and the rest is left"
        is_complete = self._is_complete(ranges, input_ended=input_ended)
        if is_complete and self._session.retry is None:
            state.came_later = count_later(self._session.bounds.high)
        state.unresolved = self._patiently(self._table.unresolved)
        self._decide(code, reason, is_complete=is_complete)
        is_cut = self._session.retry is not None and not input_ended
        left = {"retry": self._session.retry, "ended_at": F("ended_at")} if is_cut else {"retry": None}
        self._patiently(lambda: self._session.end(**{**self._progress(), **self._left_with(), **left}))
        self.closed = True

    def _is_complete(self, ranges: list[Range], *, input_ended: bool) -> bool:
        high = self._session.bounds.high
        if self._session.retry is not None and (self._session.was_complete or not input_ended):
            return input_ended
        if self._session.spec.key is not None:
            return input_ended and self._session.retry is None and [each.low for each in ranges] in ([], [FIRST])
        return input_ended if high == FIRST else not [*gaps_between(ranges, high)]

    def _decide(self, code: str, reason: str, *, is_complete: bool) -> None:
        from ..ledger.models import Run

        state, status = self.state, Run.Status
        if is_complete:
            state.status = status.FINISHED_WITH_FAILURES if state.unresolved else status.FINISHED
            state.stop_code = state.stop_reason = ""
        elif self.cancelling:
            state.status, state.stop_code, state.stop_reason = status.CANCELLED, "operator", reason
        else:
            state.status, state.stop_code, state.stop_reason = status.PAUSED, code or "error", reason
        state.status = str(state.status.value)

    def _left_with(self) -> dict[str, Any]:
        from ..ledger.models import Run

        state = self.state
        ended = state.status in Run.ENDED
        return {
            "status": state.status,
            "stop_code": state.stop_code,
            "stop_reason": storable(state.stop_reason)[:1000],
            "came_later": state.came_later,
            "throttle": "",
            "heartbeat_at": timezone.now(),
            "ended_at": timezone.now() if ended else None,
        }


def _passes(error: Error) -> bool:
    """Whether the database says that it may have time for the same later: a lock, a time limit, a connection."""
    return is_transient(error) or hit_time_limit(error)
