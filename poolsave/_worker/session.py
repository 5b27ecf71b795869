"""Runs one chunk after the other, wherever it is: in the caller's thread, another thread, or another process."""

from __future__ import annotations

import os
import pickle
import random
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from .._db import connections as _connections
from .._db.mysql import call_guarded, mysql_aliases
from .._db.session_locks import release_session_locks
from .._db.transactions import AttemptResult, run_in_transaction, run_without_transaction
from .._pickling.values import from_wire, to_wire, unpickle_chunk
from .._runtime.foreign_exceptions import is_a, traceback_of
from .._runtime.forks import ending_children
from ..errors import RowGone
from ..executors.protocol import Marks
from ..outcomes import Status
from .deadline import Deadline, NoDeadline
from .fast_loop import FastLoop
from .per_chunk import ChunkRolledBack, ObjectResult, run_chunk_in_transaction
from .replies import ReplyBuilder
from .rows import RowLoader

if TYPE_CHECKING:
    from .context import CapturedContext
    from .job import WorkerJob


LONGEST_PAUSE = 1.0
"""Seconds; the pause before a retry grows from 0.02 s and is drawn at random, so that two deadlocked workers part."""
_dice = random.SystemRandom()


_here = threading.local()


class JobEntry:
    """While entered, the thread works for a job: it runs an object, or a callback of the user's."""

    def __init__(self, job: object) -> None:
        self._job = job

    def __enter__(self) -> None:
        _here.jobs = (self._job, *getattr(_here, "jobs", ()))

    def __exit__(self, *_exc_info: object) -> None:
        _here.jobs = _here.jobs[1:]


def is_working_for(job: object) -> bool:
    """Whether this thread works for that job at the moment."""
    return any(one is job for one in getattr(_here, "jobs", ()))


class WorkerSession:
    """An opened worker. It runs objects one at a time and answers for each of them, whatever happens."""

    def __init__(
        self, job: WorkerJob, call: Callable[[Any], Any], rows: RowLoader | None, stack: ExitStack, *, own_process: bool
    ) -> None:
        self._job = job
        self._entry = JobEntry(job)
        self._bare = call
        self._function = call = ending_children(call)
        self._rows = rows
        self._by_keys = rows is not None
        self._stack = stack
        self._carried: CapturedContext | None = None
        self._perform = call if not job.crosses else self._call_across
        if rows is not None:
            self._perform = self._call_with_row
        self._attempt: Callable[[Callable[[], Any], Marks, int], AttemptResult] = run_without_transaction
        self._deadline = NoDeadline() if job.timeout is None else Deadline(job.timeout)
        if job.transaction is not None:
            limit = self._deadline.callback
            self._attempt = partial(run_in_transaction, aliases=job.databases, noted=job.noted, limit=limit)
        if job.turn is not None:
            self._attempt = partial(_in_turn, job.turn, self._attempt)
        self._watched = mysql_aliases(job.databases) if job.transaction is not None else []
        hindrances = (job.transaction, rows, job.turn, job.timeout)
        self._straight = all(one is None for one in hindrances)
        self._turn = job.turn or nullcontext()
        self._edge: _connections.ConnectionMaintenance | None = None
        if job.surroundings is not None and not job.inline:
            self._edge = _connections.ConnectionMaintenance()
        self._own_process = own_process
        self._timed_out = False
        self._idle_since = time.perf_counter()
        self._name: int | str = os.getpid() if self._own_process else threading.current_thread().name

    def carry_along(self, carried: CapturedContext) -> None:
        """Restore context around every object."""
        self._carried = carried
        self._straight = False
        self._perform = carried.around(self._perform)

    def run(self, payload: Any, marks: Marks, reply: Callable[[Any, bool], None]) -> None:
        """Run one chunk and reply for every object of it, in order, now and then."""
        with self._entry:
            self._run(payload, marks, reply)

    def _run(self, payload: Any, marks: Marks, reply: Callable[[Any, bool], None]) -> None:
        waited = time.perf_counter() - self._idle_since
        objects, pickled = payload, False
        if self._job.crosses:
            objects, pickled = unpickle_chunk(payload, for_tries=not self._straight)
        collector = self._new_collector(waited)
        if not self._straight:
            self._run_guarded(objects, marks, reply, collector)
        else:
            call = self._call_with_pickled if pickled else self._bare
            begun = FastLoop(call, marks, collector, reply).run(objects)
            if collector.troubled:
                self._release_locks()
            if begun < len(objects):
                self._skip(len(objects) - begun, reply, collector)
        if self._edge is not None:
            self._edge.after_chunk(had_errors=collector.troubled)
        self._idle_since = time.perf_counter()

    def _skip(self, count: int, reply: Callable[[Any, bool], None], collector: ReplyBuilder) -> None:
        for _ in range(count):
            collector.add(AttemptResult(Status.SKIPPED), 0, 0.0)
        reply(collector.take(), True)

    def _run_guarded(
        self, objects: list[Any], marks: Marks, reply: Callable[[Any, bool], None], collector: ReplyBuilder
    ) -> None:
        if self._by_keys:
            objects = [from_wire(key) for key in objects]
        for place, _end in enumerate(self._collected(objects, marks, collector), 1):
            if place < len(objects) and collector.due(time.perf_counter()):
                reply(collector.take(), False)
                collector.resume()
        collector.timed_out = self.timed_out_since()
        reply(collector.take(), True)

    def _new_collector(self, waited: float) -> ReplyBuilder:
        return ReplyBuilder(self._name, waited, crosses=self._job.crosses)

    def _collected(self, objects: Sequence[Any], marks: Marks, collector: ReplyBuilder) -> Iterator[None]:
        """Run the objects, and give each end to the collector."""
        for end, attempts in self.ends(objects, marks):
            if end.attempt.error is None:
                collector.add(end.attempt, attempts, end.seconds)
            else:
                self._add_error(collector, end.attempt.error, end, attempts)
            yield

    def timed_out_since(self) -> bool:
        """Whether the server has ended something that took too long, since it was asked last."""
        found, self._timed_out = self._timed_out, False
        return found

    def ends(self, objects: Sequence[Any], marks: Marks) -> Iterator[tuple[ObjectResult, int]]:
        """Run the objects one after the other, and give the end and the attempts of each."""
        run = self._together if self._job.transaction == "chunk" else self._one_by_one
        return run(objects, 0, marks, 1)

    def _add_error(self, collector: ReplyBuilder, error: BaseException, end: ObjectResult, attempts: int) -> None:
        if not self._own_process:
            # The frames' locals would keep objects and cursors alive for as long as the report lives.
            traceback.clear_frames(traceback_of(error))
        if is_a(error, RowGone):
            collector.add(end.attempt._replace(status=Status.SKIPPED), 0, end.seconds)
        else:
            collector.add(end.attempt, attempts, end.seconds)

    def _one_by_one(
        self, objects: Sequence[Any], first: int, marks: Marks, tries: int
    ) -> Iterator[tuple[ObjectResult, int]]:
        # With context, a row is fetched by its own object, where that is in force, and in the object's transaction.
        if self._rows is not None and self._carried is None and not marks.halted:
            self._deadline.start(marks, objects=len(objects))
            self._rows.try_to_load(objects)
            self._deadline.stop(marks)
        for offset, item in enumerate(objects, first):
            if marks.halted:
                yield ObjectResult(AttemptResult(Status.SKIPPED), 0.0), 0
                continue
            began = time.perf_counter()
            attempt, attempts = self._try_alone(item, marks, offset, tries)
            yield ObjectResult(attempt, time.perf_counter() - began), attempts

    def _try_alone(self, item: Any, marks: Marks, offset: int, tries: int) -> tuple[AttemptResult, int]:
        call, last = self._call(item), tries + self._job.retries
        self._deadline.start(marks)
        while True:
            attempt = self._attempt(call, marks, offset)
            if attempt.status is not Status.SUCCEEDED:
                self._release_locks()
            pause = _random_pause(tries) if attempt.retry and tries < last else None
            if pause is None or self._deadline.comes_within(pause):
                self._deadline.stop(marks)
                return attempt, tries
            time.sleep(pause)
            tries += 1

    def _release_locks(self) -> None:
        if self._edge is not None:  # else the connections are the caller's, and may hold locks of the caller's own
            release_session_locks()

    def _together(
        self, objects: Sequence[Any], first: int, marks: Marks, tries: int
    ) -> Iterator[tuple[ObjectResult, int]]:
        if len(objects) == 1:
            yield from self._one_by_one(objects, first, marks, tries)
            return
        with self._turn:
            calls, limit = self._calls(objects, marks), partial(self._limit_callback, marks)
            self._deadline.start(marks)  # of BEGIN
            ends = run_chunk_in_transaction(
                calls, marks, first, self._job.databases, noted=self._job.noted, limit=limit
            )
            if isinstance(ends, ChunkRolledBack) or any(end.attempt.status is Status.FAILED for end in ends):
                self._release_locks()
            self._deadline.stop(marks)
        if self._rows is not None:
            self._rows.forget()
        if not isinstance(ends, ChunkRolledBack):
            yield from ((end, tries if end.attempt.status is not Status.SKIPPED else 0) for end in ends)
            if len(ends) < len(objects):  # the others have not begun
                yield from self._together(objects[len(ends) :], first + len(ends), marks, tries)
        elif ends.halve:
            self._timed_out = True
            middle = len(objects) // 2
            yield from self._together(objects[:middle], first, marks, tries + 1)
            yield from self._together(objects[middle:], first + middle, marks, tries + 1)
        else:
            yield from self._one_by_one(objects, first, marks, tries + 1)

    def _calls(self, objects: Sequence[Any], marks: Marks) -> Iterator[Callable[[], Any]]:
        if self._rows is not None and not marks.halted:
            load = self._rows.load if self._carried is None else self._carried.around(self._rows.load)
            self._deadline.start(marks, objects=len(objects))
            load(objects)
        for item in objects:
            self._deadline.start(marks)
            yield self._call(item)
        self._deadline.start(marks)  # of COMMIT

    def _limit_callback(self, marks: Marks) -> AbstractContextManager[None]:
        self._deadline.start(marks)
        return self._deadline.callback()

    def _call(self, item: Any) -> Callable[[], Any]:
        call = partial(self._perform if self._job.timeout is None else self._perform_in_time, item)
        return partial(call_guarded, call, self._watched) if self._watched else call

    def _perform_in_time(self, item: Any) -> Any:
        with self._deadline.function():
            return self._perform(item)

    def _call_across(self, item: Any) -> Any:
        # Both ways inside the transaction: what cannot cross is a failure that is rolled back.
        return to_wire(self._function(from_wire(item)))

    def _call_with_pickled(self, item: bytes) -> Any:
        return self._bare(pickle.loads(item))

    def _call_with_row(self, key: Any) -> Any:
        assert self._rows is not None
        value = self._function(self._rows.take(key))
        return to_wire(value) if self._job.crosses else value

    def close(self) -> None:
        """Close the connections that this worker opened, and put back what it found."""
        self._stack.close()


def _random_pause(tries: int) -> float:
    # Not from the common generator: the user's code may have given it a seed, the same in all workers.
    longest: float = min(LONGEST_PAUSE, 0.02 * 2**tries)
    return _dice.uniform(longest / 2, longest)


def _in_turn(turn: threading.Lock, attempt: Callable[..., AttemptResult], *arguments: Any) -> AttemptResult:
    with turn:
        return attempt(*arguments)
