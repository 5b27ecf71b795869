"""Runs chunks, one after the other, in the caller's thread, another thread, or another process.

Executors call `WorkerSession.run`. It chooses between `FastLoop`, one transaction per object, and one per chunk.
"""

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


MAX_PAUSE = 1.0
"""Seconds. The pause before a retry grows from 0.02 s up to this, and is random, so that two deadlocked workers
separate."""
_random = random.SystemRandom()


_thread = threading.local()


class JobEntry:
    """While entered, the thread works for a job: it runs an object or a user's callback."""

    def __init__(self, job: object) -> None:
        self._job = job

    def __enter__(self) -> None:
        _thread.jobs = (self._job, *getattr(_thread, "jobs", ()))

    def __exit__(self, *_exc_info: object) -> None:
        _thread.jobs = _thread.jobs[1:]


def is_working_for(job: object) -> bool:
    """Whether this thread works for that job now."""
    return any(entered is job for entered in getattr(_thread, "jobs", ()))


class WorkerSession:
    """An opened worker. It runs objects one at a time, and replies for each of them whatever happens."""

    def __init__(
        self, job: WorkerJob, call: Callable[[Any], Any], rows: RowLoader | None, stack: ExitStack, *, own_process: bool
    ) -> None:
        self._job = job
        self._entry = JobEntry(job)
        self._plain_call = call
        self._function = call = ending_children(call)
        self._rows = rows
        self._by_keys = rows is not None
        self._stack = stack
        self._context: CapturedContext | None = None
        self._perform = call if not job.crosses else self._call_across
        if rows is not None:
            self._perform = self._call_with_row
        self._attempt: Callable[[Callable[[], Any], Marks, int], AttemptResult] = run_without_transaction
        self._deadline = NoDeadline() if job.timeout is None else Deadline(job.timeout)
        if job.transaction is not None:
            limit = self._deadline.callback
            self._attempt = partial(run_in_transaction, aliases=job.databases, noted=job.noted, limit=limit)
        if job.serial_lock is not None:
            self._attempt = partial(_with_lock, job.serial_lock, self._attempt)
        self._mysql_aliases = mysql_aliases(job.databases) if job.transaction is not None else []
        needs = (job.transaction, rows, job.serial_lock, job.timeout)
        self._uses_fast_loop = all(need is None for need in needs)
        self._serial_lock = job.serial_lock or nullcontext()
        self._maintenance: _connections.ConnectionMaintenance | None = None
        if job.environment is not None and not job.inline:
            self._maintenance = _connections.ConnectionMaintenance()
        self._own_process = own_process
        self._timed_out = False
        self._idle_since = time.perf_counter()
        self._name: int | str = os.getpid() if self._own_process else threading.current_thread().name

    def use_context(self, context: CapturedContext) -> None:
        """Restore context around every object."""
        self._context = context
        self._uses_fast_loop = False
        self._perform = context.wrap(self._perform)

    def run(self, payload: Any, marks: Marks, reply: Callable[[Any, bool], None]) -> None:
        """Run one chunk. Sends one or more replies, in order, that cover every object."""
        with self._entry:
            self._run(payload, marks, reply)

    def _run(self, payload: Any, marks: Marks, reply: Callable[[Any, bool], None]) -> None:
        waited = time.perf_counter() - self._idle_since
        objects, pickled = payload, False
        if self._job.crosses:
            objects, pickled = unpickle_chunk(payload, for_tries=not self._uses_fast_loop)
        builder = self._new_builder(waited)
        if not self._uses_fast_loop:
            self._run_guarded(objects, marks, reply, builder)
        else:
            call = self._call_with_pickled if pickled else self._plain_call
            started = FastLoop(call, marks, builder, reply).run(objects)
            if builder.has_details:
                self._release_locks()
            if started < len(objects):
                self._reply_skipped(len(objects) - started, reply, builder)
        if self._maintenance is not None:
            self._maintenance.after_chunk(had_errors=builder.has_details)
        self._idle_since = time.perf_counter()

    def _reply_skipped(self, count: int, reply: Callable[[Any, bool], None], builder: ReplyBuilder) -> None:
        for _ in range(count):
            builder.add(AttemptResult(Status.SKIPPED), 0, 0.0)
        reply(builder.take(), True)

    def _run_guarded(
        self, objects: list[Any], marks: Marks, reply: Callable[[Any, bool], None], builder: ReplyBuilder
    ) -> None:
        if self._by_keys:
            objects = [from_wire(key) for key in objects]
        for index, _result in enumerate(self._run_objects(objects, marks, builder), 1):
            if index < len(objects) and builder.due(time.perf_counter()):
                reply(builder.take(), False)
                builder.resume()
        builder.timed_out = self.pop_timed_out()
        reply(builder.take(), True)

    def _new_builder(self, waited: float) -> ReplyBuilder:
        return ReplyBuilder(self._name, waited, crosses=self._job.crosses)

    def _run_objects(self, objects: Sequence[Any], marks: Marks, builder: ReplyBuilder) -> Iterator[None]:
        """Run the objects, and add each result to the builder."""
        for result, attempts in self.results(objects, marks):
            builder.add(*self._reported(result.attempt, attempts), result.seconds)
            yield

    def pop_timed_out(self) -> bool:
        """Whether the server has hit a time limit since the last call."""
        timed_out, self._timed_out = self._timed_out, False
        return timed_out

    def results(self, objects: Sequence[Any], marks: Marks) -> Iterator[tuple[ObjectResult, int]]:
        """Run the objects one after the other, and yield the result and the attempts of each."""
        run = self._run_as_chunk if self._job.transaction == "chunk" else self._run_one_by_one
        return run(objects, 0, marks, 1)

    def _reported(self, attempt: AttemptResult, attempts: int) -> tuple[AttemptResult, int]:
        if attempt.error is None:
            return attempt, attempts
        if not self._own_process:
            # The frames' locals would keep objects and cursors alive for as long as the report lives.
            traceback.clear_frames(traceback_of(attempt.error))
        if is_a(attempt.error, RowGone):
            return attempt._replace(status=Status.SKIPPED), 0
        return attempt, attempts

    def _run_one_by_one(
        self, objects: Sequence[Any], first: int, marks: Marks, tries: int
    ) -> Iterator[tuple[ObjectResult, int]]:
        # With context, each object fetches its own row: there the context is in force, in the object's transaction.
        if self._rows is not None and self._context is None and not marks.halted:
            self._deadline.start(marks, objects=len(objects))
            self._rows.try_to_load(objects)
            self._deadline.stop(marks)
        for offset, item in enumerate(objects, first):
            if marks.halted:
                yield ObjectResult(AttemptResult(Status.SKIPPED), 0.0), 0
                continue
            started = time.perf_counter()
            attempt, attempts = self._run_with_retries(item, marks, offset, tries)
            yield ObjectResult(attempt, time.perf_counter() - started), attempts

    def _run_with_retries(self, item: Any, marks: Marks, offset: int, tries: int) -> tuple[AttemptResult, int]:
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
        # Without maintenance the connections are the caller's, and may hold locks of the caller's own.
        if self._maintenance is not None:
            _connections.release_session_locks()

    def _run_as_chunk(
        self, objects: Sequence[Any], first: int, marks: Marks, tries: int
    ) -> Iterator[tuple[ObjectResult, int]]:
        if len(objects) == 1:
            yield from self._run_one_by_one(objects, first, marks, tries)
            return
        with self._serial_lock:
            calls, limit = self._calls(objects, marks), partial(self._limit_callback, marks)
            self._deadline.start(marks)  # of BEGIN
            results = run_chunk_in_transaction(
                calls, marks, first, self._job.databases, noted=self._job.noted, limit=limit
            )
            if isinstance(results, ChunkRolledBack) or any(
                result.attempt.status is Status.FAILED for result in results
            ):
                self._release_locks()
            self._deadline.stop(marks)
        if self._rows is not None:
            self._rows.discard()
        if not isinstance(results, ChunkRolledBack):
            yield from ((result, tries if result.attempt.status is not Status.SKIPPED else 0) for result in results)
            if len(results) < len(objects):  # the others have not started
                yield from self._run_as_chunk(objects[len(results) :], first + len(results), marks, tries)
        elif results.halve:
            self._timed_out = True
            middle = len(objects) // 2
            yield from self._run_as_chunk(objects[:middle], first, marks, tries + 1)
            yield from self._run_as_chunk(objects[middle:], first + middle, marks, tries + 1)
        else:
            yield from self._run_one_by_one(objects, first, marks, tries + 1)

    def _calls(self, objects: Sequence[Any], marks: Marks) -> Iterator[Callable[[], Any]]:
        if self._rows is not None and not marks.halted:
            load = self._rows.load if self._context is None else self._context.wrap(self._rows.load)
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
        return partial(call_guarded, call, self._mysql_aliases) if self._mysql_aliases else call

    def _perform_in_time(self, item: Any) -> Any:
        with self._deadline.function():
            return self._perform(item)

    def _call_across(self, item: Any) -> Any:
        # Inside the transaction: an object or value that cannot be pickled is a failure that is rolled back.
        return to_wire(self._function(from_wire(item)))

    def _call_with_pickled(self, item: bytes) -> Any:
        return self._plain_call(pickle.loads(item))

    def _call_with_row(self, key: Any) -> Any:
        assert self._rows is not None
        value = self._function(self._rows.get(key))
        return to_wire(value) if self._job.crosses else value

    def close(self) -> None:
        """Close the connections that this worker opened, and undo its settings."""
        self._stack.close()


def _random_pause(tries: int) -> float:
    # Not from the shared generator: the user's code may have seeded it alike in all workers.
    max_pause: float = min(MAX_PAUSE, 0.02 * 2**tries)
    return _random.uniform(max_pause / 2, max_pause)


def _with_lock(serial_lock: threading.Lock, attempt: Callable[..., AttemptResult], *arguments: Any) -> AttemptResult:
    with serial_lock:
        return attempt(*arguments)
