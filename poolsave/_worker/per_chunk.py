"""`transaction="chunk"`: one transaction for all objects of a chunk, with a savepoint for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeAlias

from .._db.commit_status import unanswered_note
from .._db.error_codes import hit_time_limit, is_transient
from .._db.savepoints import Savepoints
from .._db.transactions import (
    AttemptResult,
    OpenTransactions,
    begin_on,
    check_can_commit,
    commit_on,
    detach_on_commit,
    lost_attempt,
    record_xid,
    rollback_on,
    run_on_commit,
)
from .._runtime.foreign_exceptions import add_note, text_of
from ..executors.marks import COMMITTED, COMMITTING, PENDING, RUNNING
from ..executors.protocol import Marks
from ..outcomes import Status


class ObjectResult(NamedTuple):
    """What became of one object of the chunk, and how long it took."""

    attempt: AttemptResult
    seconds: float


class ChunkRolledBack(NamedTuple):
    """The transaction was rolled back as a whole, so that every object of it can be run again."""

    halve: bool
    """It ran into a time limit of the server, so that a smaller one may pass."""


_Ran: TypeAlias = tuple[ObjectResult, list[Callable[[], object]]]
"""An object, and its `on_commit` callbacks."""
ChunkResult: TypeAlias = list[ObjectResult] | ChunkRolledBack


class _EndedPastDjango(Exception):  # no error, but a way out of the loop
    pass


class _RollbackChunk(Exception):  # no error, but a way out of the loop
    def __init__(self, *, halve: bool) -> None:
        self.halve = halve


def run_chunk_in_transaction(  # noqa: PLR0913  as for one object
    calls: Iterable[Callable[[], Any]],
    marks: Marks,
    first: int,
    aliases: Sequence[str],
    *,
    noted: bool,
    limit: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> ChunkResult:
    """Run the calls in one transaction, in which they are also made; gives their ends once it is committed.

    An object that raises is rolled back to its savepoint, and the others stay. What makes the whole transaction
    impossible gives `ChunkRolledBack`. There are fewer ends than calls if one of them has ended the transaction past
    Django: what was saved until then is lost, and the rest has not begun. `first` is the place of the first object in
    its chunk, for the marks; `limit` ends callbacks that take too long.
    """
    entered = begin_on(aliases, noted=noted)
    if entered.error is not None:
        entered.disarm()
        rollback_on(entered.blocks, entered.error)
        return ChunkRolledBack(halve=False)
    ran: list[_Ran] = []
    note = 0
    error: BaseException | None = None
    savepoints = Savepoints(entered.connections)
    try:
        for place, call in enumerate(calls):
            ran.append(_run_object(call, marks, first + place, savepoints, entered))
            _check_not_ended(savepoints)
        check_can_commit(savepoints.connections)
        savepoints.release()
        note = record_xid(aliases, marks) if noted else 0
    except BaseException as caught:
        error = caught
    finally:
        savepoints.close()
    ended = entered.disarm()
    if ended:
        return _lose_all(ran, lost_attempt(entered, ended, _error_of(error)), marks, first)
    if error is not None:  # nothing is committed yet, so that every object can be run again
        rollback_on(entered.blocks, error)
        return ChunkRolledBack(halve=type(error) is _RollbackChunk and error.halve)
    return _commit(ran, entered, marks, first, note=note, limit=limit)


def _error_of(error: BaseException | None) -> BaseException | None:
    return None if type(error) in (_EndedPastDjango, _RollbackChunk) else error


def _lose_all(ran: list[_Ran], lost: AttemptResult, marks: Marks, first: int) -> list[ObjectResult]:
    """What became of the objects until the transaction was ended: nobody knows, but for those that failed before."""
    ends = [end for end, _ in ran]
    for place, end in enumerate(ends):
        if end.attempt.status is Status.SUCCEEDED:
            marks.put(first + place, COMMITTING)
            ends[place] = _lost(end, lost, 0)
        elif end.attempt.status is Status.LOST and end.attempt.error is not None:
            add_note(end.attempt.error, text_of(lost.error))
    return ends


def _commit(  # noqa: PLR0913  as above
    ran: list[_Ran],
    entered: OpenTransactions,
    marks: Marks,
    first: int,
    *,
    note: int,
    limit: Callable[[], AbstractContextManager[None]],
) -> ChunkResult:
    saved = [place for place, (end, _) in enumerate(ran) if end.attempt.status is Status.SUCCEEDED]
    for place in saved:
        marks.put(first + place, COMMITTING)
    began = time.perf_counter()
    failed = commit_on(entered.blocks)
    committing = time.perf_counter() - began
    if failed is not None and failed.status is Status.FAILED:
        return ChunkRolledBack(halve=False)
    ends = [end for end, _ in ran]
    for place in saved if failed is None else ():  # all of them before a callback, which may end this process
        marks.put(first + place, COMMITTED)
    note = unanswered_note(note, committing)
    for place in saved:
        ends[place] = _called_back(*ran[place], limit) if failed is None else _lost(ends[place], failed, note)
    return _told(ends, committing)


def _told(ends: list[ObjectResult], committing: float) -> list[ObjectResult]:
    if ends:  # with the first of them, since there is one COMMIT for all
        ends[0] = ends[0]._replace(attempt=ends[0].attempt._replace(committing=committing))
    return ends


def _run_object(
    call: Callable[[], Any], marks: Marks, offset: int, savepoints: Savepoints, entered: OpenTransactions
) -> _Ran:
    if marks.halted:
        return ObjectResult(AttemptResult(Status.SKIPPED), 0.0), []
    began = time.perf_counter()
    marks.put(offset, RUNNING)
    attempt = _at_savepoint(call, savepoints)
    if savepoints.has_ended():
        marks.put(offset, COMMITTING)
        if attempt.error is not None:
            attempt = attempt._replace(status=Status.LOST)
        return ObjectResult(attempt, time.perf_counter() - began), []
    if attempt.error is not None and entered.outermost:
        _refuse_to_go_on(attempt.error, savepoints.connections)
    marks.put(offset, PENDING)
    taken = detach_on_commit(entered.owned) if attempt.error is None else []
    return ObjectResult(attempt, time.perf_counter() - began), taken


def _check_not_ended(savepoints: Savepoints) -> None:
    if savepoints.has_ended():
        raise _EndedPastDjango


def _at_savepoint(call: Callable[[], Any], savepoints: Savepoints) -> AttemptResult:
    try:
        value = savepoints.around(call)
    except BaseException as error:  # whatever a user's function raises is that object's failure
        return AttemptResult(Status.FAILED, error=error)
    return AttemptResult(Status.SUCCEEDED, value)


def _refuse_to_go_on(error: BaseException, used: Iterable[Any]) -> None:
    if hit_time_limit(error):
        raise _RollbackChunk(halve=True) from error
    if is_transient(error) or any(connection.needs_rollback for connection in used):
        raise _RollbackChunk(halve=False) from error


def _called_back(
    end: ObjectResult, callbacks: list[Callable[[], object]], limit: Callable[[], AbstractContextManager[None]]
) -> ObjectResult:
    if not callbacks:
        return end
    return end._replace(attempt=end.attempt._replace(error=run_on_commit(callbacks, limit)))


def _lost(end: ObjectResult, failed: AttemptResult, note: int) -> ObjectResult:
    return end._replace(attempt=failed._replace(value=end.attempt.value, note=note))
