"""What surrounds one call of the user's function, and what can be said about the database afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from django.db import Error, connections, transaction
from django.db.transaction import TransactionManagementError

from .._runtime.foreign_exceptions import add_note, is_a, text_of, traceback_of
from .._runtime.forks import end_child, fork_flag
from ..executors.marks import COMMITTED, COMMITTING, RUNNING
from ..executors.protocol import Marks
from ..outcomes import Status
from .commit_status import NO_XID, TransactionNote, identity_of, remember_server, unanswered_note
from .error_codes import connection_lost, is_savepoint_missing, is_transient, was_not_sent
from .transaction_guard import TransactionGuard
from .transient_errors import add_transient_cause, watch_transient_errors


class AttemptResult(NamedTuple):
    """What one call came to."""

    status: Status
    value: Any = None
    error: BaseException | None = None
    retry: bool = False
    """The database says that the same may succeed if it is tried again, and nothing of this attempt is left."""
    note: int = 0
    """For what was lost: the transaction's id, if it was noted."""
    committing: float = 0.0
    """Seconds that its COMMIT took."""


def run_without_transaction(call: Callable[[], Any], marks: Marks, offset: int) -> AttemptResult:
    """`transaction=None`: the function manages its own transactions, if any."""
    marks.put(offset, RUNNING)
    try:
        value = call()
    except BaseException as error:  # whatever a user's function raises is that object's failure
        return AttemptResult(Status.FAILED, error=error)
    marks.put(offset, COMMITTED)
    return AttemptResult(Status.SUCCEEDED, value)


def run_in_transaction(  # noqa: PLR0913  the last two have defaults
    call: Callable[[], Any],
    marks: Marks,
    offset: int,
    aliases: Sequence[str],
    *,
    noted: bool = False,
    limit: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> AttemptResult:
    """`transaction="object"`: one transaction around the call, on every alias. `limit` ends callbacks that take too
    long."""
    marks.put(offset, RUNNING)
    entered = begin_on(aliases, noted=noted)
    note, value, error = 0, None, entered.error
    if error is None:
        try:
            value = call()
            if not entered.has_ended():
                check_can_commit(entered.connections)
                note = record_xid(aliases, marks) if noted else 0
        except BaseException as caught:  # whatever a user's function raises is that object's failure
            error = caught
            add_transient_cause(error, filter(is_doomed, entered.connections))
    ended = entered.disarm()
    if ended:
        marks.put(offset, COMMITTING)
        return lose(entered, ended, error)
    if error is not None:
        rollback_on(entered.blocks, error)
        return AttemptResult(Status.FAILED, error=error, retry=entered.outermost and is_transient(error))
    callbacks = detach_on_commit(entered.owned)
    marks.put(offset, COMMITTING)
    began = time.perf_counter()
    failed = commit_on(entered.blocks)
    committing = time.perf_counter() - began
    if failed is not None:
        return failed._replace(
            value=value, note=unanswered_note(note, committing), retry=failed.retry and entered.outermost
        )
    marks.put(offset, COMMITTED)
    return AttemptResult(Status.SUCCEEDED, value, run_on_commit(callbacks, limit), committing=committing)


class FunctionBlock(transaction.Atomic):
    """A block of `atomic()` around a user's function."""

    @property
    def _from_testcase(self) -> bool:
        # Django asks the innermost block for it when a durable one begins, and only then.
        raise RuntimeError(
            f"atomic(durable=True) cannot begin inside the transaction that poolsave has opened on {self.using!r} for "
            "the object: use transaction=None, with which the function's own transactions are the only ones"
        )

    @_from_testcase.setter
    def _from_testcase(self, value: bool) -> None:
        """Atomic's own constructor sets it."""


class OpenTransactions(NamedTuple):
    """The atomic blocks that were opened, one per alias."""

    blocks: list[FunctionBlock]
    connections: list[Any]
    """Those of the blocks."""
    owned: list[tuple[Any, int]]
    """Connections whose transaction began with the block, with the number of `on_commit` callbacks that it began with:
    those of a cache that has patched `Atomic`, say, which Django itself runs. The others are inside a transaction of
    the caller's, whose commit is the caller's affair, and so are its callbacks."""
    guards: list[TransactionGuard]
    """Those of the connections."""
    error: BaseException | None = None
    """What went wrong on the way."""

    def has_ended(self) -> bool:
        """Whether one of the transactions is known to have been ended past Django."""
        return any(guard.has_ended() for guard in self.guards)

    def disarm(self) -> list[TransactionGuard]:
        """No function runs inside any more; gives the guards of the transactions that were ended past Django."""
        return [guard for guard in reversed(self.guards) if guard.disarm()]

    @property
    def outermost(self) -> bool:
        """Whether every transaction is the block's own, so that nothing is left when it is rolled back."""
        return len(self.owned) == len(self.blocks)


def begin_on(aliases: Sequence[str], *, noted: bool = False) -> OpenTransactions:
    """Open an atomic block on every alias, as far as that is possible.

    With `noted`, the server is known by then, on which its transaction will be noted.
    """
    entered = OpenTransactions([], [], [], [])
    try:
        for alias in aliases:
            if noted and connections[alias].vendor == "postgresql" and not connections[alias].in_atomic_block:
                remember_server(connections[alias])
            _begin(alias, entered)
    except BaseException as error:  # no connection to be had, say: the failure of the object that needs it
        return entered._replace(error=error)
    return entered


def _begin(alias: str, entered: OpenTransactions) -> None:
    connection = connections[alias]
    is_outermost = not connection.in_atomic_block and connection.get_autocommit()
    block = FunctionBlock(alias, True, False)
    block.__enter__()
    watch_transient_errors(connection)
    entered.blocks.append(block)
    entered.connections.append(connection)
    if is_outermost:
        entered.owned.append((connection, len(connection.run_on_commit)))
    guard = _guard_class(connection)(connection)
    entered.guards.append(guard)
    guard.arm()


def _guard_class(connection: Any) -> type[TransactionGuard]:
    found = _guard_classes.get(type(connection.connection))
    if found is None:
        found = _guard_classes[type(connection.connection)] = _find_guard_class(connection)
    return found


_guard_classes: dict[type, type[TransactionGuard]] = {}


def _find_guard_class(connection: Any) -> type[TransactionGuard]:
    # A driver is there only if its backend is used.
    if connection.vendor == "sqlite":
        from .sqlite import SqliteGuard as Found
    elif connection.vendor == "mysql":
        from .mysql import MysqlGuard as Found  # type: ignore[assignment]
    elif hasattr(connection.connection, "pgconn"):
        from .psycopg3 import Psycopg3Guard as Found  # type: ignore[assignment]
    elif connection.vendor == "postgresql":
        from .psycopg2 import Psycopg2Guard as Found  # type: ignore[assignment]
    else:
        return TransactionGuard
    return Found


def check_can_commit(used: Iterable[Any]) -> None:
    """Refuse to call something saved that the end of its block would roll back without a word.

    Raises:
        TransactionManagementError: saying what to do.
    """
    # atomic() does so when needs_rollback is set, and PostgreSQL answers COMMIT with ROLLBACK.
    for connection in used:
        if is_doomed(connection):
            raise TransactionManagementError(
                f"the function returned, but its transaction on {connection.alias!r} can only be rolled back: a "
                "database error was caught inside it, set_rollback(True) was called, or its connection is closed; put "
                "atomic() around what may fail"
            )


def is_doomed(connection: Any) -> bool:
    """Whether its transaction can only be rolled back, as far as that is known without asking the server."""
    return connection.needs_rollback or _has_aborted(connection)


def _has_aborted(connection: Any) -> bool:
    if connection.connection is None:
        return False
    if connection.vendor == "sqlite":  # OR ROLLBACK, RAISE(ROLLBACK) and a full disk end its transaction
        begun = connection.commit_on_exit and not getattr(connection.connection, "begin_is_due", None)
        return begun and not connection.connection.in_transaction
    if connection.vendor == "mysql":
        return not getattr(connection.connection, "open", True)
    if connection.vendor != "postgresql":
        return False
    # libpq's PQTRANS_INERROR, and PQTRANS_UNKNOWN for a connection that is closed, so that no COMMIT would be sent. The
    # numbers are the same in psycopg2 and psycopg 3.
    return int(connection.connection.info.transaction_status) in (3, 4)


def rollback_on(entered: Sequence[FunctionBlock], error: BaseException) -> None:
    """Leave the blocks with an error."""
    for block in reversed(entered):
        try:
            block.__exit__(type(error), error, traceback_of(error))
        except Error as secondary:  # the connection is gone, and with it the transaction
            connections[block.using or "default"].close()
            add_note(error, f"rolling back on {block.using!r} failed, too: {text_of(secondary)}")


def lose(entered: OpenTransactions, ended: list[TransactionGuard], error: BaseException | None) -> AttemptResult:
    """Undo what can still be undone after a transaction was ended past Django; the object may have been saved."""
    aliases = [guard.connection.alias for guard in ended]
    if error is None:
        error = TransactionManagementError(f"the transaction on {aliases!r} was ended before its object was done")
    add_note(
        error,
        f"poolsave: COMMIT, ROLLBACK or a new connection has ended the transaction on {aliases!r} past Django, so that "
        "what was saved before may be in the database or not: leave it out, or use transaction=None",
    )
    rollback_on(entered.blocks, error)
    for guard in ended:
        guard.abandon()
        if any(connection is guard.connection for connection, _ in entered.owned):
            guard.connection.close()
    return AttemptResult(Status.LOST, error=error)


def record_xid(aliases: Sequence[str], marks: Marks) -> int:
    """Note the id of the open transaction, by which PostgreSQL can say later what became of it; 0 if it cannot.

    With it goes the server's time in microseconds, since after a crash the id may be given to another transaction.
    """
    connection = connections[aliases[0]]
    if len(aliases) != 1 or connection.vendor != "postgresql":
        return 0
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_current_xact_id_if_assigned()::text, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
        )
        found, moment = cursor.fetchone()
    note = NO_XID if found is None else TransactionNote(int(found), moment, identity_of(connection)).to_int()
    marks.note(note)
    return note


def commit_on(entered: Sequence[FunctionBlock]) -> AttemptResult | None:
    """Commit on all aliases; gives what went wrong, or None."""
    committed: list[str | None] = []
    for block in reversed(entered):
        try:
            block.__exit__(None, None, None)
        except BaseException as error:
            rollback_on(entered[: len(entered) - len(committed) - 1], error)
            return _failed_commit(error, block.using, committed)
        committed.append(block.using)
    return None


def _failed_commit(error: BaseException, alias: str | None, committed: list[str | None]) -> AttemptResult:
    if committed:
        add_note(error, f"committed on {committed!r} before the commit on {alias!r} failed")
        return AttemptResult(Status.LOST, error=error)
    if is_savepoint_missing(error):  # the transaction of the caller's is another one than that of the object
        add_note(
            error, "the transaction was ended before its object was done, so the object may have been saved or not"
        )
        return AttemptResult(Status.LOST, error=error)
    if connection_lost(error) or not is_a(error, Error):
        connections[alias or "default"].close()
        if was_not_sent(error):
            return AttemptResult(Status.FAILED, error=error, retry=True)
        add_note(error, "the answer to COMMIT did not arrive, so the object may have been saved or not")
        return AttemptResult(Status.LOST, error=error)
    return AttemptResult(Status.FAILED, error=error, retry=is_transient(error))


def detach_on_commit(owned: Iterable[tuple[Any, int]]) -> list[Callable[[], object]]:
    """Take the function's `on_commit` callbacks away from Django, which would run them inside the block's exit, where
    an error of theirs looks like one of COMMIT."""
    taken: list[Callable[[], object]] = []
    for connection, before in owned:
        if len(connection.run_on_commit) > before:
            taken += [entry[1] for entry in connection.run_on_commit[before:]]
            del connection.run_on_commit[before:]
    return taken


def _error_of(
    callback: Callable[[], object], limit: Callable[[], AbstractContextManager[None]]
) -> BaseException | None:
    try:
        with limit():
            callback()
    except BaseException as error:
        return error
    return None


def run_on_commit(
    callbacks: list[Callable[[], object]], limit: Callable[[], AbstractContextManager[None]] = nullcontext
) -> BaseException | None:
    """Run all `on_commit` callbacks; gives what they raised. The object is saved whatever they do."""
    errors: list[BaseException] = []
    forked = fork_flag()
    for callback in callbacks:
        error = _error_of(callback, limit)
        if forked:
            end_child(error)
        if error is not None:  # told in the outcome of the object
            errors.append(error)
    if len(errors) > 1:
        return BaseExceptionGroup("several on_commit callbacks raised", errors)
    return errors[0] if errors else None
