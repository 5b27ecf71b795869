"""`transaction="chunk"`: one transaction for all objects of a chunk, with a savepoint for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any, NamedTuple, TypeAlias

from ..._db.commit_status import unanswered_note
from ..._db.error_codes import hit_time_limit, is_transient
from ..._db.on_commit import detach_on_commit, run_on_commit
from ..._db.savepoints import Savepoints
from ..._db.transactions import (
    AttemptResult,
    OpenTransactions,
    begin_on,
    commit,
    record_xid,
    roll_back,
)
from ..._runtime.foreign_exceptions import add_note, text_of
from ...executors.marks import COMMITTED, COMMITTING, PENDING, RUNNING
from ...executors.protocol import Marks
from ...outcomes import Status
from ..recording import Recorder
from ..replies import NOT_STARTED, ObjectResult


class ChunkRolledBack(NamedTuple):
    """The transaction was rolled back as a whole, so that each of its objects can run again."""

    halve: bool
    """It hit a time limit of the server: smaller chunks may pass."""
    undone: bool = False
    """It is to run again in one transaction, with savepoints that are sent."""


_RanObject: TypeAlias = tuple[ObjectResult, list[Callable[[], object]]]
"""The result of an object, and its `on_commit` callbacks."""
NOT_RUN: _RanObject = NOT_STARTED, []
ChunkResult: TypeAlias = list[ObjectResult] | ChunkRolledBack


class _EndedPastDjango(Exception):  # leaves the loop; not an error
    pass


class _RollbackChunk(Exception):  # leaves the loop; not an error
    def __init__(self, *, halve: bool) -> None:
        self.halve = halve


def run_chunk_in_transaction(  # noqa: PLR0913  as for one object
    calls: Iterable[tuple[int, Callable[[], Any]]],
    marks: Marks,
    first: int,
    aliases: Sequence[str],
    *,
    noted: bool,
    limit: Callable[[], AbstractContextManager[None]] = nullcontext,
    open_savepoints: Callable[[OpenTransactions], Savepoints] = Savepoints,
    recorder: Recorder | None = None,
) -> ChunkResult:
    """Run the calls in one transaction, and return their results once it is committed.

    The iterator of `calls` runs inside the transaction, too. It gives numbers from 0 on, each with a call. A number
    that comes again is of an object whose first result does not count. An object that raises is rolled back to its
    savepoint, and the others stay. An error that dooms the whole transaction gives `ChunkRolledBack`. There are fewer
    results than calls if a call has ended the transaction past Django: the objects saved until then are lost, and the
    rest has not started. `first` is the offset of the first object in the chunk, for the marks. `limit` ends callbacks
    that take too long. `open_savepoints` opens the objects' savepoints in transactions that have just begun. `recorder`
    writes their last row.
    """
    transactions = begin_on(aliases, noted=noted)
    ran: list[_RanObject] = []
    savepoints: Savepoints | None = None
    note, error, undone = 0, transactions.error, False
    if error is None:
        try:
            savepoints = open_savepoints(transactions)
            savepoints.asks_for_id = noted and recorder is None
            with closing(savepoints):
                for index, call in calls:
                    if recorder is not None:
                        recorder.enter(first + index)
                    ends = marks.halted and index == len(ran)
                    last = NOT_RUN if ends else _run_object(call, marks, first + index, savepoints, transactions)
                    ran[index : index + 1] = [last]
                    _check_can_go_on(last[0].attempt, transactions, savepoints)
                transactions.check_can_commit(transactions.blocks)
                # Proof that the transaction is the one that was begun here: in any other the savepoint is missing.
                savepoints.release()
                if recorder is not None:
                    note = _record(ran, marks, first, recorder)
                elif noted:
                    note = record_xid(aliases, marks, savepoints.id_and_time)
        except BaseException as caught:
            error = caught
        undone = savepoints is not None and savepoints.undone
    if transactions.disarm() or error is not None:
        result = _roll_back(ran, transactions, error, marks, first)
        return result._replace(undone=undone) if isinstance(result, ChunkRolledBack) else result
    return _commit(ran, transactions, marks, first, note=note, limit=limit, recorder=recorder)


def _record(ran: list[_RanObject], marks: Marks, first: int, recorder: Recorder) -> int:
    if not recorder.records:
        return 0
    callbacks = any(callbacks for _, callbacks in ran)
    return recorder.record_chunk(first, [result for result, _ in ran], marks, callbacks=callbacks)


def _roll_back(
    ran: list[_RanObject], transactions: OpenTransactions, error: BaseException | None, marks: Marks, first: int
) -> ChunkResult:
    attempt = roll_back(transactions, None if type(error) in (_EndedPastDjango, _RollbackChunk) else error)
    if attempt.status is Status.LOST:
        return _lose_all(ran, attempt, marks, first)
    # Nothing was committed, so every object can run again.
    return ChunkRolledBack(halve=type(error) is _RollbackChunk and error.halve)


def _lose_all(ran: list[_RanObject], lost: AttemptResult, marks: Marks, first: int) -> list[ObjectResult]:
    """The results when the transaction was ended past Django: LOST, except for the objects that had failed before."""
    results = [result for result, _ in ran]
    for index, result in enumerate(results):
        if result.attempt.status is Status.SUCCEEDED:
            marks.put(first + index, COMMITTING)
            results[index] = _as_lost(result, lost, 0)
        elif result.attempt.status is Status.LOST and result.attempt.error is not None:
            add_note(result.attempt.error, text_of(lost.error))
    return results


def _commit(  # noqa: PLR0913  as above
    ran: list[_RanObject],
    transactions: OpenTransactions,
    marks: Marks,
    first: int,
    *,
    note: int,
    limit: Callable[[], AbstractContextManager[None]],
    recorder: Recorder | None,
) -> ChunkResult:
    saved = [index for index, (result, _) in enumerate(ran) if result.attempt.status is Status.SUCCEEDED]
    # Worker dies among these marks: no COMMIT was sent. Objects that are still PENDING run again; of the others the
    # note tells, and without one they are LOST.
    for index in saved:
        marks.put(first + index, COMMITTING)
    started = time.perf_counter()
    failed = commit(transactions)
    committing = time.perf_counter() - started
    if failed is not None and failed.status is Status.FAILED:
        return ChunkRolledBack(halve=False)
    results = [result for result, _ in ran]
    for index in saved if failed is None else ():  # all marks before the first callback, which may end this process
        marks.put(first + index, COMMITTED)
    if recorder is not None and recorder.records and failed is None:
        results = [_as_recorded(result) for result in results]
    note = unanswered_note(note, committing)
    for index in saved:
        if recorder is not None and ran[index][1]:
            recorder.enter(first + index)
        results[index] = (
            _run_callbacks(*ran[index], transactions, limit)
            if failed is None
            else _as_lost(results[index], failed, note)
        )
    if results:  # the first object gets the seconds of the one COMMIT
        results[0] = results[0]._replace(attempt=results[0].attempt._replace(committing=committing))
    return results


def _run_object(
    call: Callable[[], Any], marks: Marks, offset: int, savepoints: Savepoints, transactions: OpenTransactions
) -> _RanObject:
    started = time.perf_counter()
    marks.put(offset, RUNNING)
    attempt = _at_savepoint(call, savepoints)
    # What it did before that may be in the database.
    if transactions.has_ended():
        marks.put(offset, COMMITTING)
        if attempt.error is not None:
            attempt = attempt._replace(status=Status.LOST)
        return ObjectResult(attempt, time.perf_counter() - started), []
    marks.put(offset, PENDING)
    callbacks = detach_on_commit(transactions.owned) if attempt.error is None else []
    return ObjectResult(attempt, time.perf_counter() - started), callbacks


def _at_savepoint(call: Callable[[], Any], savepoints: Savepoints) -> AttemptResult:
    try:
        value = savepoints.around(call)
    except BaseException as error:  # whatever a user's function raises is that object's failure
        return AttemptResult(Status.FAILED, error=error)
    return AttemptResult(Status.SUCCEEDED, value)


def _check_can_go_on(attempt: AttemptResult, transactions: OpenTransactions, savepoints: Savepoints) -> None:
    if transactions.ended:
        raise _EndedPastDjango
    if savepoints.undone:
        raise _RollbackChunk(halve=False)
    if attempt.error is None or not transactions.outermost:
        return
    if hit_time_limit(attempt.error):
        raise _RollbackChunk(halve=True) from attempt.error
    if is_transient(attempt.error) or any(guard.connection.needs_rollback for guard in transactions.guards):
        raise _RollbackChunk(halve=False) from attempt.error


def _run_callbacks(
    result: ObjectResult,
    callbacks: list[Callable[[], object]],
    transactions: OpenTransactions,
    limit: Callable[[], AbstractContextManager[None]],
) -> ObjectResult:
    if not callbacks:
        return result
    return result._replace(attempt=result.attempt._replace(error=run_on_commit(callbacks, transactions, limit)))


def _as_recorded(result: ObjectResult) -> ObjectResult:
    if result.attempt.error is None:
        return result
    return result._replace(attempt=result.attempt._replace(recorded=True))


def _as_lost(result: ObjectResult, failed: AttemptResult, note: int) -> ObjectResult:
    return result._replace(attempt=failed._replace(value=result.attempt.value, note=note))
