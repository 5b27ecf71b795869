"""The values of the option `transaction`: how a worker runs the objects of a chunk, and tries them again.

Each mode gives one result per object, in order, as soon as it is known. What it calls for an object is composed of the
user's function and what the run puts around it. Each layer takes the object as it came with the chunk. From the inside
out, and in the transaction:

    function -> end of forked children -> row or bytes in -> bytes out -> context -> time-out
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from ..._db.connections import release_session_locks
from ..._db.error_codes import is_overload
from ..._db.inspection import alias_without_connection, await_connection
from ..._db.savepoints import Savepoints
from ..._db.transactions import AttemptResult, OpenTransactions, attempt_of, run_in_transaction
from ..._db.write_behind.pacing import Batching
from ..._pickling.values import from_wire, to_wire
from ..._runtime.forks import ending_children
from ...executors.marks import COMMITTED, RUNNING
from ...executors.protocol import Marks
from ...outcomes import Status
from ..deadline import Deadline, NoDeadline
from ..replies import NOT_STARTED, ObjectResult
from .per_chunk import ChunkResult, ChunkRolledBack, run_chunk_in_transaction

if TYPE_CHECKING:
    from ..context import CapturedContext
    from ..job import WorkerJob
    from ..recording import Recorder
    from ..rows import RowLoader

MAX_PAUSE = 1.0
"""Seconds. The pause before a retry grows from 0.02 s up to this, and is random, so that two deadlocked workers
separate."""
_random = random.SystemRandom()


class WithoutTransaction:
    """`transaction=None`: the function manages its own transactions."""

    recorder: Recorder | None = None
    """Of a durable run."""

    def __init__(  # noqa: PLR0913  one for each layer
        self,
        job: WorkerJob,
        function: Callable[[Any], Any],
        rows: RowLoader | None,
        context: CapturedContext | None,
        *,
        unpickles: bool,
        pickles: bool,
    ) -> None:
        self._job = job
        self._rows = rows
        self._context = context
        self._deadline = NoDeadline() if job.timeout is None else Deadline(job.timeout)
        self._call = self._compose_call(function, unpickles=unpickles, pickles=pickles)
        self._serial_lock = job.serial_lock or nullcontext()
        self._timed_out = self._overloaded = False
        self._needed = {*job.databases} if rows is None else {*job.databases, rows.alias}
        self.unreachable: tuple[str, str] | None = None
        """The alias of a database that was waited for in vain, and the driver's message. No more objects are begun."""
        self.knows_next = False
        """Whether the result after the last one is known already."""

    def _compose_call(self, function: Callable[[Any], Any], *, unpickles: bool, pickles: bool) -> Callable[[Any], Any]:
        """`unpickles`: objects come from another process; `pickles`: values go to one."""
        call = ending_children(function)
        if self._rows is not None:
            call = partial(_with_loaded, call, self._rows.get)
        elif unpickles:
            call = partial(_with_loaded, call, from_wire)
        if pickles:
            call = partial(_to_wire, call)
        if self._context is not None:
            call = self._context.wrap(call)
        return call if self._job.timeout is None else partial(_in_time, call, self._deadline)

    def results(self, objects: Sequence[Any], marks: Marks, first: int = 0, tries: int = 1) -> Iterator[ObjectResult]:
        """Run the objects. `first` is the offset of the first one in its chunk, `tries` the number of its first try."""
        if self._rows is not None and not marks.halted:
            objects = self._load_rows(self._rows, objects, marks)
        for offset, item in enumerate(objects, first):
            ended = marks.halted or self.unreachable is not None
            yield NOT_STARTED if ended else self._run_with_retries(item, marks, offset, tries)

    def _load_rows(self, rows: RowLoader, objects: Sequence[Any], marks: Marks) -> Sequence[Any]:
        keys = [*map(from_wire, objects)]
        if self._context is None:  # else each object fetches its own row, in its context and its transaction
            self._deadline.start(marks, objects=len(keys))
            rows.try_to_load(keys)
            self._deadline.stop(marks)
        return keys

    def _run_with_retries(self, item: Any, marks: Marks, offset: int, tries: int) -> ObjectResult:
        started = time.perf_counter()
        call, last = partial(self._call, item), tries + self._job.retries
        attempt_once = self._attempt if self._job.serial_lock is None else self._attempt_in_turn
        self._deadline.start(marks)
        while True:
            attempt = attempt_once(call, marks, offset)
            if attempt.status is not Status.SUCCEEDED:
                self._release_locks()
                attempt = self._after_failure(attempt, marks)
            pause = _random_pause(tries) if attempt.retry and tries < last else None
            if pause is None or self._deadline.comes_within(pause):
                self._deadline.stop(marks)
                return ObjectResult(attempt, time.perf_counter() - started, tries)
            time.sleep(pause)
            tries += 1

    def _after_failure(self, attempt: AttemptResult, marks: Marks) -> AttemptResult:
        """If there is no connection, wait for one, for which the object's clock stands still."""
        self._note_overload(attempt.error)
        if attempt.status is Status.LOST:  # the caller is to ask the server about it soon
            return attempt
        alias = alias_without_connection(attempt.error, self._needed)
        if alias is None:
            return attempt
        self._deadline.stop(marks)
        if self._waits_in_vain(alias, marks):
            return attempt._replace(retry=False)
        self._deadline.start(marks)
        return attempt

    def lacks_database(self, error: BaseException, marks: Marks) -> bool:
        """After a failure: whether there was no connection, and none was to be had since then."""
        self._note_overload(error)
        alias = alias_without_connection(error, self._needed)
        return alias is not None and self._waits_in_vain(alias, marks)

    def _waits_in_vain(self, alias: str, marks: Marks) -> bool:
        reason = await_connection(alias, lambda: marks.halted)
        if reason is not None and not marks.halted:
            self.unreachable = alias, reason
        return reason is not None

    def _attempt_in_turn(self, call: Callable[[], Any], marks: Marks, offset: int) -> AttemptResult:
        # Threads take turns on a database in memory, but not through the pause before a retry: the others would wait
        # for it.
        with self._serial_lock:
            return self._attempt(call, marks, offset)

    def _attempt(self, call: Callable[[], Any], marks: Marks, offset: int) -> AttemptResult:
        if self.recorder is not None:
            self.recorder.enter(offset)
        marks.put(offset, RUNNING)
        try:
            value = call()
        except BaseException as error:  # whatever a user's function raises is that object's failure
            return attempt_of(error)
        marks.put(offset, COMMITTED)
        return AttemptResult(Status.SUCCEEDED, value)

    def _release_locks(self) -> None:
        # The caller's own connections may hold locks of the caller's.
        if self._job.owns_connections:
            release_session_locks()

    def pop_timed_out(self) -> bool:
        """Whether the server has hit a time limit since the last call."""
        timed_out, self._timed_out = self._timed_out, False
        return timed_out

    def _note_overload(self, error: BaseException | None) -> None:
        self._overloaded = self._overloaded or (error is not None and is_overload(error))

    def pop_overloaded(self) -> bool:
        """Whether the server has ended what took too long, or had no connection left, since the last call."""
        overloaded, self._overloaded = self._overloaded, False
        return overloaded

    def take_batching(self) -> Batching | None:
        """Give what `batch_writes` did since the last call, or None."""
        return None


class TransactionPerObject(WithoutTransaction):
    """`transaction="object"`: one transaction for each try of each object."""

    def _attempt(self, call: Callable[[], Any], marks: Marks, offset: int) -> AttemptResult:
        job, limit, record = self._job, self._deadline.callback, None
        if self.recorder is not None:
            if self.recorder.lost is not None:
                return AttemptResult(Status.SKIPPED, error=self.recorder.lost)
            self.recorder.enter(offset)
            if self.recorder.records:
                record = partial(self.recorder.record_object, offset, marks)
        return run_in_transaction(call, marks, offset, job.databases, noted=job.noted, limit=limit, record=record)


class TransactionPerChunk(TransactionPerObject):
    """`transaction="chunk"`: one transaction for the chunk. If it is rolled back, its objects run again in two halves
    or in a transaction each."""

    def results(self, objects: Sequence[Any], marks: Marks, first: int = 0, tries: int = 1) -> Iterator[ObjectResult]:
        if len(objects) == 1:
            yield from super().results(objects, marks, first, tries)
            return
        results = self._run_chunk(objects, marks, first)
        if not isinstance(results, ChunkRolledBack):
            if tries > 1:
                results = [_with_tries(result, tries) for result in results]
            self.knows_next = True
            yield from results[:-1]
            self.knows_next = False
            yield from results[-1:]
            if len(results) < len(objects):  # the others have not started
                yield from self.results(objects[len(results) :], marks, first + len(results), tries)
        elif results.halve:
            self._timed_out = True
            middle = len(objects) // 2
            yield from self.results(objects[:middle], marks, first, tries + 1)
            yield from self.results(objects[middle:], marks, first + middle, tries + 1)
        else:
            yield from super().results(objects, marks, first, tries + 1)

    def _run_chunk(self, objects: Sequence[Any], marks: Marks, first: int) -> ChunkResult:
        return self._run_with_savepoints(objects, marks, first, Savepoints)

    def _run_with_savepoints(
        self,
        objects: Sequence[Any],
        marks: Marks,
        first: int,
        open_savepoints: Callable[[OpenTransactions], Savepoints],
    ) -> ChunkResult:
        with self._serial_lock:
            calls, limit = self._calls(objects, marks), partial(self._limit_callback, marks)
            self._deadline.start(marks)  # of BEGIN
            job = self._job
            results = run_chunk_in_transaction(
                calls,
                marks,
                first,
                job.databases,
                noted=job.noted,
                limit=limit,
                open_savepoints=open_savepoints,
                recorder=self.recorder,
            )
            if isinstance(results, ChunkRolledBack) or any(
                result.attempt.status is Status.FAILED for result in results
            ):
                self._release_locks()
            self._deadline.stop(marks)
        if self._rows is not None:
            self._rows.discard()
        return results

    def _calls(self, objects: Sequence[Any], marks: Marks) -> Iterator[tuple[int, Callable[[], Any]]]:
        if self._rows is not None and not marks.halted:
            objects = [*map(from_wire, objects)]
            load = self._rows.load if self._context is None else self._context.wrap(self._rows.load)
            self._deadline.start(marks, objects=len(objects))
            load(objects)
        for number in chain(range(len(objects)), self._numbers_again(marks)):
            self._deadline.start(marks)
            yield number, partial(self._call, objects[number])
        self._deadline.start(marks)  # of COMMIT

    def _numbers_again(self, _marks: Marks) -> Iterable[int]:
        """Give those that have to run again, after all have run."""
        return ()

    def _limit_callback(self, marks: Marks) -> AbstractContextManager[None]:
        self._deadline.start(marks)
        return self._deadline.callback()


class BatchedTransactionPerChunk(TransactionPerChunk):
    """`batch_writes`: the rows of a chunk go together. If they cannot, it runs again in the ordinary way. Where rows
    are there already, only their objects do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        from ..._db.write_behind.write_behind import WriteBehind  # few workers need it

        super().__init__(*args, **kwargs)
        self._write_behind = WriteBehind()

    def _run_chunk(self, objects: Sequence[Any], marks: Marks, first: int) -> ChunkResult:
        results = self._run_with_savepoints(objects, marks, first, self._write_behind.open_savepoints)
        if isinstance(results, ChunkRolledBack) and results.undone and self._write_behind.can_try_again():
            results = self._run_with_savepoints(objects, marks, first, self._write_behind.open_savepoints_again)
        if isinstance(results, ChunkRolledBack) and results.undone:
            results = self._run_with_savepoints(objects, marks, first, self._write_behind.open_ordinary_savepoints)
        return results

    def _numbers_again(self, marks: Marks) -> Iterator[int]:
        self._deadline.start(marks)  # of what is sent
        yield from self._write_behind.numbers_again()

    def take_batching(self) -> Batching | None:
        return self._write_behind.take_counts()


MODES = {None: WithoutTransaction, "object": TransactionPerObject, "chunk": TransactionPerChunk}
"""By the value of the option."""


def _with_loaded(call: Callable[[Any], Any], load: Callable[[Any], Any], item: Any) -> Any:
    return call(load(item))


def _to_wire(call: Callable[[Any], Any], item: Any) -> Any:
    # Inside the transaction: a value that cannot be pickled is a failure that is rolled back.
    return to_wire(call(item))


def _in_time(call: Callable[[Any], Any], deadline: NoDeadline, item: Any) -> Any:
    with deadline.function():
        return call(item)


def _random_pause(tries: int) -> float:
    # Not from the shared generator: the user's code may have seeded it alike in all workers.
    max_pause: float = min(MAX_PAUSE, 0.02 * 2**tries)
    return _random.uniform(max_pause / 2, max_pause)


def _with_tries(result: ObjectResult, tries: int) -> ObjectResult:
    return result if result is NOT_STARTED else result._replace(attempts=tries)
