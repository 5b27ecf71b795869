"""Runs one call of the user's function in its transaction, and says what is known of the database afterwards.

Called by `_worker/modes/transaction_modes.py` for each try. `_worker/modes/per_chunk.py` builds a chunk's transaction
from the same parts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from django.db import DEFAULT_DB_ALIAS, Error, connections, transaction
from django.db.transaction import TransactionManagementError

from .._runtime.foreign_exceptions import add_note, is_a, text_of, traceback_of
from ..executors.marks import COMMITTED, COMMITTING, RUNNING
from ..executors.protocol import Marks
from ..outcomes import Status
from .commit_status import NO_XID, TransactionNote, identity_of, remember_server, unanswered_note
from .error_codes import connection_lost, is_savepoint_missing, is_transient, is_unprepared, was_not_sent
from .on_commit import detach_on_commit, run_on_commit
from .transaction_guard import TransactionGuard, guard_of


class AttemptResult(NamedTuple):
    """How one call ended."""

    status: Status
    value: Any = None
    error: BaseException | None = None
    retry: bool = False
    """The database says that another try may succeed, and none of this attempt's work is left."""
    note: int = 0
    """For a lost object: the note of its transaction (`TransactionNote`), or 0."""
    recorded: bool = False
    """It has failed, and its row in the ledger of a durable run is committed."""
    committing: float = 0.0
    """Seconds that the COMMIT took."""


class CallEnded(Exception):
    """Raised by a call that has opened transactions itself, to say what is known of them."""

    def __init__(self, attempt: AttemptResult) -> None:
        super().__init__(attempt)
        self.attempt = attempt


def attempt_of(error: BaseException) -> AttemptResult:
    """How a call without a transaction has ended that raised this."""
    return error.attempt if is_a(error, CallEnded) else AttemptResult(Status.FAILED, error=error)


def run_in_transaction(  # noqa: PLR0913  the last two have defaults
    call: Callable[[], Any],
    marks: Marks,
    offset: int,
    aliases: Sequence[str],
    *,
    noted: bool = False,
    limit: Callable[[], AbstractContextManager[None]] = nullcontext,
    record: Callable[..., int] | None = None,
) -> AttemptResult:
    """Run the call for `transaction="object"`: in one transaction on every alias.

    With `noted`, the transaction's id is noted before COMMIT. `limit` ends `on_commit` callbacks that take too long.
    `record` writes the last row of the transaction and gives its note, told whether there are callbacks.
    """
    # Before BEGIN: a crash of the driver as it connects is blamed on the object, too.
    marks.put(offset, RUNNING)
    opened = begin_on(aliases, noted=noted)
    note, value, error = 0, None, opened.error
    if error is None:
        try:
            value = call()
            opened.check_can_commit(opened.blocks)
            if (noted or record is not None) and not opened.has_ended():
                note = record_xid(aliases, marks) if record is None else record(callbacks=opened.has_callbacks())
        except BaseException as caught:  # whatever a user's function raises is that object's failure
            error = caught
            opened.add_transient_cause(error)
    if opened.disarm():
        marks.put(offset, COMMITTING)  # its work may be in the database
        return roll_back(opened, error)
    if error is not None:
        return roll_back(opened, error)
    # Worker dies before COMMITTING: no COMMIT was sent, and the server rolls back. After it: the note, which was
    # written before, names the transaction to ask about.
    callbacks = detach_on_commit(opened.owned)
    marks.put(offset, COMMITTING)
    started = time.perf_counter()
    failed = commit(opened)
    committing = time.perf_counter() - started
    if failed is not None:
        return failed._replace(
            value=value, note=unanswered_note(note, committing), retry=failed.retry and opened.outermost
        )
    # Before the callbacks: if the worker dies in one of them, the object is saved all the same.
    marks.put(offset, COMMITTED)
    return AttemptResult(Status.SUCCEEDED, value, run_on_commit(callbacks, opened, limit), committing=committing)


class FunctionBlock(transaction.Atomic):
    """A block of `atomic()` around a user's function."""

    @property
    def _from_testcase(self) -> bool:
        # Django reads it from the innermost block when a durable block begins, and only then.
        guard = guard_of(connections[self.using or DEFAULT_DB_ALIAS].connection)
        if guard is not None:
            guard.refused = "atomic(durable=True)"
        raise RuntimeError(
            f"atomic(durable=True) cannot begin inside the transaction that poolsave has opened on {self.using!r} for "
            "the object: use transaction=None, with which the function's own transactions are the only ones"
        )

    @_from_testcase.setter
    def _from_testcase(self, value: bool) -> None:
        """Ignore it; the constructor of Atomic sets it."""


class OpenTransactions(NamedTuple):
    """The open atomic blocks, one per alias."""

    blocks: list[FunctionBlock]
    guards: list[TransactionGuard]
    """The guard of each block's connection."""
    owned: list[tuple[Any, int]]
    """Connections whose transaction began with the block, each with its number of `on_commit` callbacks at that time.
    Those come from elsewhere, such as a cache that has patched `Atomic`, and Django itself runs them. Connections
    that are not listed are inside a transaction of the caller, who commits it and runs its callbacks."""
    error: BaseException | None = None
    """The error that kept a block from opening."""

    @property
    def outermost(self) -> bool:
        """Whether every transaction began with its block, so that a rollback undoes all of it."""
        return len(self.owned) == len(self.blocks)

    def has_ended(self) -> bool:
        """Whether one of the transactions is known to have been ended past Django."""
        return True in [guard.has_ended() for guard in self.guards]  # half the time of any()

    @property
    def ended(self) -> bool:
        """What `has_ended` has said at last."""
        return True in [guard.ended for guard in self.guards]

    def check_can_commit(self, blocks: Sequence[FunctionBlock]) -> None:
        """Refuse a success that the end of its `blocks`, one per alias, would not commit. What has ended is not looked
        at."""
        for guard, block in zip(self.guards, blocks, strict=True):
            if (guard.is_doomed() or guard.connection.atomic_blocks[-1:] != [block]) and not self.has_ended():
                check_can_commit(guard, block)

    def put_back(self) -> None:
        """Give Django back what the function has replaced of the connections."""
        for guard in self.guards:
            guard.put_back()

    def has_callbacks(self) -> bool:
        """Whether the function has registered `on_commit` callbacks."""
        return any(len(connection.run_on_commit) > before for connection, before in self.owned)

    def add_transient_cause(self, error: BaseException) -> None:
        """Give `error` the transient error that the function has caught, for transactions that it has doomed."""
        for guard in self.guards:
            guard.add_transient_cause(error)

    def disarm(self) -> bool:
        """Stop refusing ends; says whether one of the transactions was ended past Django."""
        ended = False
        for guard in reversed(self.guards):
            guard.disarm()
            ended = ended or guard.ended
        return ended

    def uninstall(self) -> None:
        """Leave the connections as they were."""
        for guard in reversed(self.guards):
            guard.uninstall()


def begin_on(aliases: Sequence[str], *, noted: bool = False) -> OpenTransactions:
    """Open an atomic block on every alias; stops at the first error, which the result contains.

    With `noted`, identify the PostgreSQL server first, for the transaction's note.
    """
    opened = OpenTransactions([], [], [])
    try:
        for alias in aliases:
            try:
                _open_block(alias, opened, noted=noted)
            except Error as error:
                _open_block_anew(alias, opened, error, noted=noted)
    except BaseException as error:  # such as no connection: the failure of the object
        return opened._replace(error=error)
    return opened


def _open_block_anew(alias: str, opened: OpenTransactions, error: Error, *, noted: bool) -> None:
    connection = connections[alias]
    if connection.in_atomic_block or connection.connection is None or is_transient(error):
        raise error
    connection.close()  # an earlier object may have left it in a state of its own, such as a pipeline of psycopg
    _open_block(alias, opened, noted=noted)


def _open_block(alias: str, opened: OpenTransactions, *, noted: bool) -> None:
    connection: Any = connections[alias]
    if connection.health_check_enabled:
        connection.close_if_health_check_failed()  # as BEGIN does, which must find the connection that is guarded
    if connection.connection is None:
        connection.ensure_connection()
    if noted and connection.vendor == "postgresql" and not connection.in_atomic_block:
        remember_server(connection)
    guard = guard_for(connection)
    guard.install()
    block = FunctionBlock(alias, True, False)
    try:
        block.__enter__()
    except BaseException:
        guard.uninstall()
        raise
    opened.blocks.append(block)
    opened.guards.append(guard)
    if not connection.savepoint_ids:  # else the block is inside another one, or autocommit was off
        opened.owned.append((connection, len(connection.run_on_commit)))
    guard.arm()


def guard_for(connection: Any) -> TransactionGuard:
    """Build the guard for a Django connection's driver."""
    driver = type(connection.connection)
    guard_class = _guard_classes.get(driver)
    if guard_class is None:
        guard_class = _guard_classes[driver] = _find_guard_class(connection)
    return guard_class(connection)


_guard_classes: dict[type, type[TransactionGuard]] = {}


def _find_guard_class(connection: Any) -> type[TransactionGuard]:
    # Imported here: a driver that the project does not use may not be installed.
    if connection.vendor == "sqlite":
        from .sqlite import SqliteGuard as GuardClass
    elif connection.vendor == "mysql":
        from .mysql import MysqlGuard as GuardClass  # type: ignore[assignment]
    elif hasattr(connection.connection, "pgconn"):
        from .psycopg3 import Psycopg3Guard as GuardClass  # type: ignore[assignment]
    elif connection.vendor == "postgresql":
        from .psycopg2 import Psycopg2Guard as GuardClass  # type: ignore[assignment]
    else:
        return TransactionGuard
    return GuardClass


def check_can_commit(guard: TransactionGuard, block: FunctionBlock) -> None:
    """Refuse a success that the end of its block would silently roll back, or leave open.

    Raises:
        TransactionManagementError: saying what to do.
    """
    # atomic() rolls back when needs_rollback is set, and PostgreSQL may answer COMMIT with ROLLBACK.
    if guard.is_doomed():
        raise TransactionManagementError(
            f"the function returned, but its transaction on {guard.connection.alias!r} can only be rolled back: a "
            "database error was caught inside it, set_rollback(True) was called, or its connection is closed; put "
            "atomic() around what may fail"
        )
    if block in guard.connection.atomic_blocks:
        raise TransactionManagementError(
            f"the function returned inside of an atomic() on {guard.connection.alias!r} that it has entered, so that "
            "its end would not commit: leave atomic() by `with`, and close what holds one, such as a generator or an "
            "ExitStack"
        )


def roll_back(opened: OpenTransactions, error: BaseException | None) -> AttemptResult:
    """Roll back on all aliases. The object is FAILED, or LOST if a transaction was ended past Django."""
    if error is None:
        aliases = [guard.connection.alias for guard in opened.guards if guard.ended]
        error = TransactionManagementError(f"the transaction on {aliases!r} was ended before its object was done")
    try:
        exit_blocks(opened.blocks, error)
    finally:
        opened.uninstall()
    if opened.ended:
        return _lost(opened, error)
    return AttemptResult(Status.FAILED, error=error, retry=opened.outermost and _may_pass(error))


def _may_pass(error: BaseException) -> bool:
    # A statement that is not prepared is not used again.
    return is_transient(error) or is_unprepared(error)


def exit_blocks(blocks: Sequence[FunctionBlock], error: BaseException) -> None:
    """Roll back by leaving the blocks with an error."""
    for block in reversed(blocks):
        connection = connections[block.using or DEFAULT_DB_ALIAS]
        _forget_blocks_inside(block, connection)
        try:
            block.__exit__(type(error), error, traceback_of(error))
        except Exception as secondary:  # whatever the driver raises: without its connection the transaction is gone
            connection.close()
            add_note(error, f"rolling back on {block.using!r} failed, too: {text_of(secondary)}")


def _forget_blocks_inside(block: FunctionBlock, connection: Any) -> None:
    # Django ends the innermost block, whichever is left. What the function has not left would keep ours open.
    if block in connection.atomic_blocks:
        while connection.atomic_blocks[-1] is not block:
            connection.atomic_blocks.pop()
            connection.savepoint_ids.pop()


def _lost(opened: OpenTransactions, error: BaseException) -> AttemptResult:
    ended = [guard for guard in opened.guards if guard.ended]
    add_note(
        error,
        "poolsave: COMMIT, ROLLBACK or a new connection has ended the transaction on "
        f"{[guard.connection.alias for guard in ended]!r} past Django, so that what was saved before may be in the "
        "database or not: leave it out, or use transaction=None",
    )
    for guard in ended:
        guard.abandon()
        if any(connection is guard.connection for connection, _ in opened.owned):
            guard.connection.close()
    return AttemptResult(Status.LOST, error=error)


XID, NOW = "pg_current_xact_id_if_assigned()::text", "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
"""What `record_xid` asks for: the id of the transaction, or NULL, and the microseconds by the server's clock."""


def record_xid(aliases: Sequence[str], marks: Marks, answer: tuple[str | None, int] | None = None) -> int:
    """Note the id of the open transaction, so that PostgreSQL can say later whether it was committed; 0 if it cannot.

    The note contains the server's time, since after a crash another transaction may get the id. `answer`: to `XID` and
    `NOW`, if it came with the last statement of the transaction.
    """
    connection = connections[aliases[0]]
    if len(aliases) != 1 or connection.vendor != "postgresql":
        return 0
    xid, now = answer or _xid_and_now(connection)
    note = NO_XID if xid is None else TransactionNote(int(xid), now, identity_of(connection)).to_int()
    marks.note(note)
    return note


def _xid_and_now(connection: Any) -> tuple[str | None, int]:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {XID}, {NOW}")
        answer: tuple[str | None, int] = cursor.fetchone()
    return answer


def commit(opened: OpenTransactions) -> AttemptResult | None:
    """Commit on all aliases; gives the result of a failure, or None."""
    committed: list[str | None] = []
    try:
        for block, guard in zip(reversed(opened.blocks), reversed(opened.guards), strict=True):
            _commit_block(block, guard.connection)
            committed.append(block.using)
    except BaseException as error:
        # The block that failed has been left. Those after it have not been reached, and nothing of them is committed.
        exit_blocks(opened.blocks[: -len(committed) - 1], error)
        opened.uninstall()
        if opened.ended:
            return _lost(opened, error)
        return _failed_commit(error, opened.guards[-len(committed) - 1], committed)
    opened.uninstall()
    return None


def _commit_block(block: FunctionBlock, connection: Any) -> None:
    # Django sets the flag as COMMIT has been answered, and then turns autocommit on. If that fails, it is committed.
    before = connection.run_commit_hooks_on_set_autocommit_on
    try:
        block.__exit__(None, None, None)
    except Error:
        if before or connection.autocommit or not connection.run_commit_hooks_on_set_autocommit_on:
            raise
        connection.run_commit_hooks_on_set_autocommit_on = False
        connection.close()


def _failed_commit(error: BaseException, guard: TransactionGuard, committed: list[str | None]) -> AttemptResult:
    alias, first = guard.connection.alias, guard.end_error or error
    if guard.last is not None and guard.last.has_failed:
        return AttemptResult(Status.FAILED, error=guard.last.explain(error), retry=_may_pass(first))
    is_database_error = is_a(first, Error) or is_a(first, guard.connection.Database.Error)
    if not is_database_error:
        error = first  # after it Django's next statement may have failed, with an error that says nothing of COMMIT
    if committed:
        add_note(error, f"committed on {committed!r} before the commit on {alias!r} failed")
        return AttemptResult(Status.LOST, error=error)
    if is_savepoint_missing(first):  # the caller's transaction is no longer the one that the object ran in
        add_note(
            error, "the transaction was ended before its object was done, so the object may have been saved or not"
        )
        return AttemptResult(Status.LOST, error=error)
    if connection_lost(first) or not is_database_error:
        connections[alias].close()
        if was_not_sent(first):
            return AttemptResult(Status.FAILED, error=error, retry=True)
        add_note(error, "the answer to COMMIT did not arrive, so the object may have been saved or not")
        return AttemptResult(Status.LOST, error=error)
    return AttemptResult(Status.FAILED, error=error, retry=is_transient(first))
