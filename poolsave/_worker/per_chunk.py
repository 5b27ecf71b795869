"""`transaction="chunk"`: one transaction for all objects of a chunk, with a savepoint for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

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
    record_xid,
    rollback_on,
    run_on_commit,
)
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
) -> list[ObjectResult] | ChunkRolledBack:
    """Run the calls in one transaction, in which they are also made; gives their ends once it is committed.

    An object that raises is rolled back to its savepoint, and the others stay. What makes the whole transaction
    impossible gives `ChunkRolledBack`. `first` is the place of the first object in its chunk, for the marks; `limit`
    ends callbacks that take too long.
    """
    entered = begin_on(aliases, noted=noted)
    if entered.error is not None:
        rollback_on(entered.blocks, entered.error)
        return ChunkRolledBack(halve=False)
    ran: list[tuple[ObjectResult, list[Callable[[], object]]]] = []
    savepoints = Savepoints(entered.connections)
    try:
        ran += [_one(call, marks, first + place, savepoints, entered) for place, call in enumerate(calls)]
        check_can_commit(savepoints.connections)
        savepoints.release()
        note = record_xid(aliases, marks) if noted else 0
    except BaseException as error:  # nothing is committed yet, so that every object can be run again
        rollback_on(entered.blocks, error)
        return ChunkRolledBack(halve=type(error) is _RollbackChunk and error.halve)
    finally:
        savepoints.close()
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


def _one(
    call: Callable[[], Any], marks: Marks, offset: int, savepoints: Savepoints, entered: OpenTransactions
) -> tuple[ObjectResult, list[Callable[[], object]]]:
    if marks.halted:
        return ObjectResult(AttemptResult(Status.SKIPPED), 0.0), []
    began = time.perf_counter()
    marks.put(offset, RUNNING)
    attempt = _at_savepoint(call, savepoints)
    if attempt.error is not None and entered.outermost:
        _refuse_to_go_on(attempt.error, savepoints.connections)
    marks.put(offset, PENDING)
    taken = detach_on_commit(entered.owned) if attempt.error is None else []
    return ObjectResult(attempt, time.perf_counter() - began), taken


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
