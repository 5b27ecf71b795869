"""Replies: a worker's results for consecutive objects of a chunk, in columns, since most have only a value and time."""

from __future__ import annotations

import pickle
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from operator import add, sub
from typing import Any, NamedTuple

from .._db.transactions import AttemptResult
from .._db.write_behind.pacing import Batching
from .._pickling.exceptions import ExceptionRecord, record_exception, restore_exception
from .._pickling.plain import IMMUTABLE_TYPES
from .._pickling.tracebacks import format_traceback
from .._pickling.values import split_pickled
from ..outcomes import Status

MAX_REPLY_DELAY = 0.02
"""Seconds that results may wait in the worker for others. A message costs about 0.01 ms on either side. If the
worker is killed, waiting values are lost. The status of their objects is not, since the marks are in shared memory."""


class EndTimes:
    """Seconds of objects that ran one after the other, held as the times at which each of them ended.

    A subtraction per object would cost more than a short object itself. It is made when a duration is read.
    """

    __slots__ = ("ends", "started")

    def __init__(self, started: float, ends: array[float]) -> None:
        self.started = started
        self.ends = ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, offset: int) -> float:
        return self.ends[offset] - (self.ends[offset - 1] if offset else self.started)

    def __iter__(self) -> Iterator[float]:
        return map(sub, self.ends, chain((self.started,), self.ends))


NO_STAGES: Mapping[int, int] = {}
"""Of objects that passed all stages of their worker, or none is known for."""


class ObjectDetail(NamedTuple):
    """The details of an object that did not simply succeed at the first attempt."""

    status: Status
    error: BaseException | ExceptionRecord | None
    traceback: str | None
    attempts: int
    unreadable: bool = False
    """The value could not be unpickled in the caller's process."""
    note: int = 0
    """For a lost object: the transaction's id, if it was noted."""
    recorded: bool = False
    """It has failed, and its row in the ledger of a durable run is committed."""


class ObjectResult(NamedTuple):
    """The result of one object of a chunk."""

    attempt: AttemptResult
    """Its last attempt."""
    seconds: float
    attempts: int = 1
    stage_seconds: Sequence[float] = ()
    """With several stages in the worker: its seconds in each of them."""
    ended_in_stage: int | None = None
    """With several stages: where it ended, unless it passed all of them."""


NOT_STARTED = ObjectResult(AttemptResult(Status.SKIPPED), 0.0, 0)
"""The result of an object after a halt."""


class WorkerTime(NamedTuple):
    """Seconds of a worker's time, by its own clock."""

    waited: float
    """Between the end of the previous chunk and this one."""
    worked: float
    """On the objects of this reply, commits included."""
    committed: float
    """In commits; part of `worked`."""
    timed_out: bool = False
    """The server ended a statement or a wait that took too long, so the chunk was run in halves."""
    longest: float = 0.0
    """A lower bound of the seconds of the slowest object."""
    batching: Batching | None = None
    """What `batch_writes` did."""
    unreachable: tuple[str, str] | None = None
    """The alias of a database that the worker has waited for in vain, so that it begins no more; and the driver's
    message."""
    computed: float = 0.0
    """Seconds of `worked` in which the worker, or a server on this machine for it, used a CPU; 0.0 unless the job
    counts them."""
    in_line: float = 0.0
    """Seconds of `worked` in which one of these stood in line for a CPU; likewise."""
    overloaded: bool = False
    """The server ended a statement or a wait for a lock that took too long, or had no connection to give."""


class Reply(NamedTuple):
    """`values[i]` and `seconds[i]` belong to the object at `offset + i` of its chunk, and so do `details[i]` and
    `ended_in_stage[i]` if they exist."""

    offset: int
    values: list[Any]
    seconds: array[float] | EndTimes
    details: dict[int, ObjectDetail]
    worker: int | str
    worker_time: WorkerTime
    stage_seconds: Sequence[float] = ()
    """With several stages in the worker: the seconds of all these objects in each stage."""
    ended_in_stage: Mapping[int, int] = NO_STAGES
    """The stage of each object that did not pass all of them, or whose success is unknown."""

    def to_bytes(self, *, plain: bool = False) -> bytes:
        """Pickle the reply. It cannot fail: `to_wire` has tried every value, and every error is a record.

        `plain`: all values are known to be of plain types.
        """
        began, times = pack_seconds(self.seconds)
        stages = self.stage_seconds, self.ended_in_stage
        rest = (self.offset, began, times, self.details, self.worker, tuple(self.worker_time), *stages)
        if plain or IMMUTABLE_TYPES.issuperset(map(type, self.values)):
            return pickle.dumps((self.values, {}, *rest), pickle.HIGHEST_PROTOCOL)
        return pickle.dumps((*split_pickled(self.values), *rest), pickle.HIGHEST_PROTOCOL)

    @classmethod
    def from_bytes(cls, data: bytes) -> Reply:
        """Undo `to_bytes`; a value that cannot be unpickled here becomes an error detail of its object."""
        values, pickled_values, offset, began, times, details, worker, worker_time, *stages = pickle.loads(data)
        for index, pickled in pickled_values.items():
            try:
                values[index] = pickle.loads(pickled)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # from the object's own unpickling; the object is saved all the same
                details[index] = ObjectDetail(Status.SUCCEEDED, error, format_traceback(error), 1, unreadable=True)
        for index, detail in details.items():
            if isinstance(detail.error, ExceptionRecord):
                details[index] = detail._replace(error=restore_exception(detail.error))
        return cls(offset, values, unpack_seconds(began, times), details, worker, WorkerTime(*worker_time), *stages)


def no_clock() -> tuple[float, float]:
    """Stand in for a `CpuClock` where nothing is counted."""
    return 0.0, 0.0


class ReplyBuilder:
    """Gathers the results of a chunk's objects until a reply is due."""

    def __init__(
        self,
        worker: int | str,
        waited: float,
        *,
        crosses: bool,
        cpu_clock: Callable[[], tuple[float, float]] = no_clock,
    ) -> None:
        """`waited`: the worker's idle seconds before this chunk."""
        self._worker = worker
        self._waited = waited
        self.crosses = crosses
        self.has_details = False
        """Whether any object of the chunk did more than simply succeed at the first attempt."""
        self._offset = 0
        self._cpu_clock = cpu_clock
        self.resume()

    def resume(self) -> None:
        """Begin the next reply. Its time begins only now: to send the last one may block until the caller reads."""
        self.since, self._computed_before = time.perf_counter(), self._cpu_clock()
        self._values: list[Any] = []
        self._seconds: array[float] = array("d")
        self._details: dict[int, ObjectDetail] = {}
        self._stage_seconds: list[float] = []
        self._ended_in_stage: dict[int, int] = {}
        self._committed = 0.0
        self.timed_out = self.overloaded = False
        self.batching: Batching | None = None
        self.longest = 0.0
        """A lower bound of the seconds of the slowest object."""
        self.unreachable: tuple[str, str] | None = None

    def add(self, result: ObjectResult) -> None:
        """Add the next object's result."""
        attempt = result.attempt
        if attempt.error is not None or result.attempts != 1 or attempt.status is not Status.SUCCEEDED:
            self._details[len(self._values)] = self._detail(attempt, result.attempts)
        if result.stage_seconds:
            self._add_stages(result)
        self._values.append(attempt.value)
        self._seconds.append(result.seconds)
        self._committed += attempt.committing

    def _add_stages(self, result: ObjectResult) -> None:
        totals = self._stage_seconds or [0.0] * len(result.stage_seconds)
        self._stage_seconds = [*map(add, totals, result.stage_seconds)]
        if result.ended_in_stage is not None:
            self._ended_in_stage[len(self._values)] = result.ended_in_stage

    def _detail(self, attempt: AttemptResult, attempts: int) -> ObjectDetail:
        self.has_details = True
        error = attempt.error
        if error is None:
            return ObjectDetail(attempt.status, None, None, attempts)
        text = format_traceback(error)
        wire_error = record_exception(error, text) if self.crosses else error
        return ObjectDetail(attempt.status, wire_error, text, attempts, note=attempt.note, recorded=attempt.recorded)

    def add_fast(self, values: list[Any], ends: array[float], last: AttemptResult | None, *, plain: bool) -> Any:
        """Build the reply for consecutive objects with their end times. `last` is how the last one ended if it is more
        than a value."""
        details = {} if last is None else {len(values) - 1: self._detail(last, 1)}
        return self._reply(values, EndTimes(self.since, ends), details, now=ends[-1], plain=plain)

    def due(self, now: float, *, more: bool = False) -> bool:
        """Whether a reply should be sent now. Failures never wait, except for `more` results that are known already."""
        return (bool(self._details) and not more) or now - self.since > MAX_REPLY_DELAY

    def take(self) -> Any:
        """Return the reply, as bytes if it crosses to another process. `resume` begins the next one."""
        self.longest = max(self.longest, max(self._seconds, default=0.0))
        return self._reply(self._values, self._seconds, self._details, now=time.perf_counter())

    def _reply(
        self,
        values: list[Any],
        seconds: array[float] | EndTimes,
        details: dict[int, ObjectDetail],
        *,
        now: float,
        plain: bool = False,
    ) -> Any:
        times = self._waited, now - self.since, self._committed
        before, self._computed_before = self._computed_before, self._cpu_clock()
        computed, in_line = map(sub, self._computed_before, before)
        worker_time = WorkerTime(
            *times, self.timed_out, self.longest, self.batching, self.unreachable,
            computed, in_line, self.overloaded,
        )  # fmt: skip
        stages = self._stage_seconds, self._ended_in_stage
        reply = Reply(self._offset, values, seconds, details, self._worker, worker_time, *stages)
        self._offset += len(values)
        self._waited = 0.0
        return reply.to_bytes(plain=plain) if self.crosses else reply


def pack_seconds(seconds: array[float] | EndTimes) -> tuple[float | None, bytes]:
    """Convert to what pickles fastest."""
    if isinstance(seconds, EndTimes):
        return seconds.started, seconds.ends.tobytes()
    return None, seconds.tobytes()


def unpack_seconds(began: float | None, times: bytes) -> array[float] | EndTimes:
    """Undo `pack_seconds`."""
    column = array("d", times)
    return column if began is None else EndTimes(began, column)
