"""A worker's answer for some objects of a chunk that stand side by side, in columns, since most of it is dull."""

from __future__ import annotations

import pickle
import time
from array import array
from typing import Any, NamedTuple

from .._db.transactions import AttemptResult
from .._pickling.exceptions import ExceptionRecord, format_traceback, record_exception, restore_exception
from .._pickling.plain import IMMUTABLE_TYPES
from .._pickling.values import split_pickled
from .._reports.batches import EndTimes
from ..outcomes import Status

MAX_REPLY_DELAY = 0.02
"""Seconds that an answer may wait in the worker for company: a message costs about 0.01 ms on either side, and what
waits is lost if the worker is killed (the object's status is not: that is in the shared block)."""


class ObjectDetail(NamedTuple):
    """All that is to be said of an object that did not simply succeed at the first attempt."""

    status: Status
    error: BaseException | ExceptionRecord | None
    traceback: str | None
    attempts: int
    unreadable: bool = False
    """The value could not be restored in the caller's process."""
    note: int = 0
    """For what was lost: the transaction's id, if it was noted."""


class WorkerTime(NamedTuple):
    """Seconds of a worker's time, by its own clock."""

    waited: float
    """Since it was done with the chunk before."""
    worked: float
    """On the objects of this reply, commits included."""
    committed: float
    """Of these, in commits."""
    timed_out: bool = False
    """The server ended something that took too long, so that the chunk was run in halves."""
    longest: float = 0.0
    """At least what the slowest object took."""


class Reply(NamedTuple):
    """`values[i]` and `seconds[i]` belong to the object at `offset + i` of its chunk, `troubles[i]` too if present."""

    offset: int
    values: list[Any]
    seconds: array[float] | EndTimes
    troubles: dict[int, ObjectDetail]
    worker: int | str
    spent: WorkerTime

    def to_bytes(self, *, plain: bool = False) -> bytes:
        """Pickle it; every value was sealed and every error is a record, so this cannot fail.

        `plain`: whether it is known that no value had to be sealed.
        """
        began, times = packed_seconds(self.seconds)
        rest = (self.offset, began, times, self.troubles, self.worker, tuple(self.spent))
        if plain or IMMUTABLE_TYPES.issuperset(map(type, self.values)):
            return pickle.dumps((self.values, {}, *rest), pickle.HIGHEST_PROTOCOL)
        return pickle.dumps((*split_pickled(self.values), *rest), pickle.HIGHEST_PROTOCOL)

    @classmethod
    def from_bytes(cls, data: bytes) -> Reply:
        """Undo `to_bytes`; values that cannot be restored here become trouble of their own objects."""
        values, sealed, offset, began, times, troubles, worker, spent = pickle.loads(data)
        for place, pickled in sealed.items():
            try:
                values[place] = pickle.loads(pickled)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # the object's own unpickling; the object is saved all the same
                troubles[place] = ObjectDetail(Status.SUCCEEDED, error, format_traceback(error), 1, unreadable=True)
        for place, trouble in troubles.items():
            if isinstance(trouble.error, ExceptionRecord):
                troubles[place] = trouble._replace(error=restore_exception(trouble.error))
        return cls(offset, values, unpacked_seconds(began, times), troubles, worker, WorkerTime(*spent))


class ReplyBuilder:
    """Gathers what the objects of one chunk came to, until it is time to send a reply."""

    def __init__(self, worker: int | str, waited: float, *, crosses: bool) -> None:
        """`waited`: the worker's seconds without work before this chunk."""
        self._worker = worker
        self._waited = waited
        self.crosses = crosses
        self.troubled = False
        """Whether any object of the chunk did more than simply succeed at the first attempt."""
        self._offset = 0
        self.since = time.perf_counter()
        self._begin()

    def _begin(self) -> None:
        self._values: list[Any] = []
        self._seconds: array[float] = array("d")
        self._troubles: dict[int, ObjectDetail] = {}
        self._committed = 0.0
        self.timed_out = False
        self.longest = 0.0
        """At least what the slowest object took."""

    def add(self, attempt: AttemptResult, attempts: int, seconds: float) -> None:
        """Take the next object's end."""
        if attempt.error is not None or attempts != 1 or attempt.status is not Status.SUCCEEDED:
            self._troubles[len(self._values)] = self._trouble(attempt, attempts)
        self._values.append(attempt.value)
        self._seconds.append(seconds)
        self._committed += attempt.committing

    def _trouble(self, attempt: AttemptResult, attempts: int) -> ObjectDetail:
        self.troubled = True
        error = attempt.error
        if error is None:
            return ObjectDetail(attempt.status, None, None, attempts)
        text = format_traceback(error)
        told = record_exception(error) if self.crosses else error
        return ObjectDetail(attempt.status, told, text, attempts, note=attempt.note)

    def add_brisk(self, values: list[Any], ends: array[float], failure: BaseException | None, *, plain: bool) -> Any:
        """Give the reply for objects that ran one right after the other, the last of which may have failed."""
        attempt = AttemptResult(Status.FAILED, error=failure)
        troubles = {} if failure is None else {len(values) - 1: self._trouble(attempt, 1)}
        return self._reply(values, EndTimes(self.since, ends), troubles, now=ends[-1], plain=plain)

    def due(self, now: float) -> bool:
        """Whether what was gathered should wait no longer: failures never wait."""
        return bool(self._troubles) or now - self.since > MAX_REPLY_DELAY

    def resume(self) -> None:
        """Go on after a reply was sent, which may have had to wait until the caller took it."""
        self.since = time.perf_counter()

    def take(self) -> Any:
        """Give the reply, as bytes if it has to cross, and begin the next one."""
        self.longest = max(self.longest, max(self._seconds, default=0.0))
        reply = self._reply(self._values, self._seconds, self._troubles, now=time.perf_counter())
        self._begin()
        return reply

    def _reply(
        self,
        values: list[Any],
        seconds: array[float] | EndTimes,
        troubles: dict[int, ObjectDetail],
        *,
        now: float,
        plain: bool = False,
    ) -> Any:
        spent = WorkerTime(self._waited, now - self.since, self._committed, self.timed_out, self.longest)
        reply = Reply(self._offset, values, seconds, troubles, self._worker, spent)
        self._offset += len(values)
        self._waited, self.since, self.longest = 0.0, now, 0.0
        return reply.to_bytes(plain=plain) if self.crosses else reply


def packed_seconds(seconds: array[float] | EndTimes) -> tuple[float | None, bytes]:
    """As what is pickled fastest."""
    if isinstance(seconds, EndTimes):
        return seconds.started, seconds.ends.tobytes()
    return None, seconds.tobytes()


def unpacked_seconds(began: float | None, times: bytes) -> array[float] | EndTimes:
    """Undo `packed_seconds`."""
    column = array("d", times)
    return column if began is None else EndTimes(began, column)
