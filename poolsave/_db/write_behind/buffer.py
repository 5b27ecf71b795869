"""The rows that a chunk's transaction has not sent yet.

    save() -> compiler -> hold_insert(), hold_update() -> log ...
    any other statement -> guard -> before_statement() -> flush() if it may see the log -> server
    end of the chunk -> flush() -> objects of refused rows again, each row sent at once -> COMMIT

Where rows are there already, by a unique index, the rows of their objects are left out. At the end these objects run
again, and their error comes out of `save()`. They have to fail at once then, and before that read nothing that the
chunk has changed: else it would matter that others have run before them.

Everything is in one list, so that an exception at any moment, such as a time-out, leaves it whole. What cannot be had
exactly is *undone*: `undone` says why, every further use raises `UndoChunk`, and the worker rolls the transaction back
and runs the chunk in the ordinary way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import RLock, get_ident
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar

from ..error_codes import constraint_of, sqlstate_of
from ..transaction_guard import TransactionGuard
from ..transactions import NOW, XID
from .catalog import check_of_settings
from .fields import Row
from .inserts import MAX_OBJECTS, InsertKind, InsertPlan
from .reads.matching import WaitingValues, conditions_of, reads_once
from .reads.repeated import Answer, Question, RepeatedReads
from .sending import Entry, send_all, send_new
from .source import Source
from .statements import Effect
from .updates import COUNT_IS_WRONG, TYPES_DIFFER, UpdatePlan

P = ParamSpec("P")
R = TypeVar("R")

IS_THERE = "23505"
"""The SQLSTATE of a row whose unique values another row has."""
ID_AND_TIME = f"SELECT NULL, {NOW}, {XID}"
MAX_ROWS = 2000
"""Rows that are buffered before they are sent, so that memory is bounded. They are sent between two objects, and inside
of one that has as many itself."""


class UndoChunk(BaseException):  # no Exception: a function's `except Exception` must not take it for an error
    """Leaves the function of an object whose chunk has to be run again in the ordinary way."""


def _in_turn(
    method: Callable[Concatenate[WriteBuffer, P], R],
) -> Callable[Concatenate[WriteBuffer, P], R]:
    """Let one thread at a time in: those of a function may share its connection. No row comes while others are sent,
    and no statement overtakes them."""

    def call(self: WriteBuffer, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.lock:
            return method(self, *args, **kwargs)

    return call


@dataclass
class SentSoFar:
    """What the transaction has been sent, by which it is decided whether refused objects may run again at its end."""

    objects: set[int] = field(default_factory=set)
    """Objects of which rows were sent before their end."""
    tables: set[str] = field(default_factory=set)
    """Tables of which rows were sent."""
    refused: set[int] = field(default_factory=set)
    """Objects whose rows were left out since one of them is there already."""
    tables_of_refused: set[str] = field(default_factory=set)
    """Tables of the rows that were left out."""
    has_written: bool = False
    """Whether a statement of a function's may have written."""


class WriteBuffer:
    """Buffers the INSERTs and UPDATEs of one connection during one transaction."""

    asks_for_id = False
    """Whether the rows that are sent next are the last ones of a transaction whose id will be noted."""
    id_and_time: tuple[str | None, int] | None = None
    """The transaction's id and the server's time after the last statement, if it was asked for them."""

    def __init__(
        self, source: Source, guard: TransactionGuard, note_early: Callable[[str], None], *, leaves_out: bool
    ) -> None:
        """`note_early` is told the text of each statement that makes the buffer send its rows early. `leaves_out`:
        objects whose rows are there already can run again at the end."""
        self.lock = RLock()
        self._source = source
        self._leaves_out = leaves_out
        self.channel = source.channel
        self._guard = guard
        self._check: str | None = check_of_settings(source.catalog.settings)
        """Goes before the first rows that are sent."""
        self._note_early = note_early
        self._log: list[Entry] = []
        self._values = WaitingValues(self._log, source.catalog)
        self.reads = RepeatedReads(source.channel, source.unsteady, self.undo)
        self._passing: tuple[int, str, str] | None = None
        """The thread and the text of a SELECT that finds none of the rows that wait for this table."""
        self._tables: dict[str, InsertPlan | None] = {}
        """The tables of the log, and perhaps some whose rows were taken back, with the last plan of new rows."""
        self._keys: dict[str, str] = {}
        """The column by which the rows of a table are changed."""
        self._holds = True
        self.object = -1
        """The number of the present object in the chunk."""
        self.is_direct = False
        """Whether the present object's rows are sent at once."""
        self.runs_again = False
        """Whether these objects run again now, at the end."""
        self._was_refused = False
        """Whether one that runs again has come to the row that is refused."""
        self.undone: str | None = None
        """Why the transaction has to be rolled back and run in the ordinary way, or None."""
        self.is_for_their_place = False
        """Whether it is undone only since the refused objects have to run again at their place in the chunk."""
        self.so_far = SentSoFar()
        self._has_two_plans = False
        """Whether rows of one table are sent by two INSERTs, so that the first of two equal ones is not known."""
        self.sent = 0
        """How often something was sent that a rollback to a savepoint would have to undo."""
        self.rows = 0
        """How many rows were buffered and sent."""
        self.flushes = 0
        """How often the buffer was sent."""

    def __len__(self) -> int:
        return len(self._log)

    @_in_turn
    def hold_insert(self, kind: InsertKind, instances: Sequence[Any], pre_saved: list[Any]) -> list[tuple[Any]] | None:
        """Buffer the rows of an INSERT, and give what it would return; None if it cannot wait.

        `pre_saved` takes what the fields' `pre_save` has given until then, by instance and field.
        """
        self._check_not_undone()
        if not self._holds or self.is_direct or self._guard.is_doomed() or len(instances) > MAX_OBJECTS:
            return None
        plan = self._source.inserts.find(kind)
        rows = None if plan is None else plan.rows(instances, self._source.keys.next_key, pre_saved)
        if plan is None or rows is None:
            return None
        if self.runs_again:
            self._was_refused = True  # unless it returns
            self.channel.send(plan.statement(rows))
            self._was_refused = False
        else:
            self._append_new(plan, rows)
        return plan.keys(rows) if kind.returning else []

    def _append_new(self, plan: InsertPlan, rows: list[Row]) -> None:
        last = self._tables.get(plan.table)
        if last is not None and last is not plan:
            if last.ignores_conflicts or plan.ignores_conflicts:
                self.flush()  # which of two rows conflicts with the other depends on their order
            else:
                self._has_two_plans = True
        self._tables[plan.table] = plan
        self._append(plan, rows)

    @_in_turn
    def hold_update(self, model: Any, key: Any, values: Sequence[tuple[Any, Any, Any]], *, as_is: bool = False) -> bool:
        """Buffer the row of an UPDATE, which is taken to be there; says whether it can wait.

        `values` are as Django has them, by field. `as_is`: no look-up has prepared the key.
        """
        self._check_not_undone()
        if not self._holds or self.is_direct or self.runs_again or self._guard.is_doomed():
            return False
        plan = self._source.updates.find(model, values)
        if plan is None or (as_is and not plan.takes_key(key)):
            return False
        row = plan.row(key, [value for _field, _model, value in values])
        if row is None:
            return False
        if self._keys.setdefault(plan.table, plan.key) != plan.key:
            self.flush()  # a row that has two keys cannot be told from two rows
            self._keys[plan.table] = plan.key
        self._tables.setdefault(plan.table, None)
        self._append(plan, [row])
        return True

    def _append(self, plan: InsertPlan | UpdatePlan, rows: list[Row]) -> None:
        self.reads.before_change((plan.table,))
        self._log += [(plan, row, self.object) for row in rows]
        if len(self._log) >= 2 * MAX_ROWS:
            self.flush()

    @_in_turn
    def cannot_match(self, query: Any) -> str | None:
        """Give the table of which a query finds no row that waits, if it names one and that is certain."""
        if not self._log or self._guard.is_doomed() or self.undone is not None:
            return None
        if self._values.log is not self._log:
            self._values = WaitingValues(self._log, self._source.catalog)
        conditions = conditions_of(query, self._tables)
        return next((each.table for each in conditions if self._values.exclude(each)), None)

    @_in_turn
    def find_answer(self, question: Question) -> Answer | None:
        """Give the answer that an earlier object got, or None if the server has to be asked."""
        self._check_not_undone()
        # Wrappers may refuse a statement, or change it by what only they know.
        if self._guard.is_doomed() or self.channel.connection.execute_wrappers:
            return None
        return self.reads.find(question)

    @_in_turn
    def keep_answer(self, question: Question, result: Any) -> None:
        """Keep what Django's compiler gives for objects to come, if it depends on known tables alone."""
        statement = self._source.understand(question.text)
        if statement.depends_on_rows and statement.relations and self._holds:
            self.reads.keep(question, statement.relations, result)

    def let_pass(self, text: str, table: str) -> None:
        """Have a statement not send the rows of this table."""
        if reads_once(text, self.channel.connection.ops.quote_name(table)):
            self._passing = get_ident(), text, table

    @property
    def is_sending(self) -> bool:
        """Whether what is sent now is no statement of the function's."""
        return self.channel.is_sending

    @_in_turn
    def before_statement(self, text: str | None, *, is_whole: bool = True) -> None:
        """Send the buffered rows if a statement that is about to be sent may see them.

        Without a text nothing is known of it. One that is not whole has parts that only the driver can compose.
        """
        self._check_not_undone()
        effect, relations = self._effect_of(text, is_whole=is_whole)
        if effect is Effect.UNBUFFERED:
            self.undo(f"cannot be buffered: {text}")
        if effect is not Effect.READS:
            self.reads.before_change(relations if effect is Effect.WRITES else ())
        if self._log and (effect >= Effect.ANYTHING or not relations.isdisjoint(self._tables)):
            self._note_early(text or "a statement without a text")
            self.flush()
        if self.runs_again and (effect > Effect.WRITES or not relations.isdisjoint(self.so_far.tables)):
            self.undo("an object whose row is there already reads what others have changed", at_their_place=True)
        if effect is Effect.SETTINGS:
            self._holds = self._source.is_valid = False
        if effect is not Effect.READS:
            self.so_far.has_written = True
            self.sent += 1
            self.id_and_time = None

    def _effect_of(self, text: str | None, *, is_whole: bool) -> tuple[Effect, frozenset[str]]:
        """Say what a statement does, and to which tables of which it may see the rows that wait."""
        effect, relations, _depends_on_rows = self._source.understand(text)
        passing, self._passing = self._passing, None
        if passing is not None and passing[:2] == (get_ident(), text) and effect is Effect.READS:
            relations -= {passing[2]}
        return effect if is_whole else max(effect, Effect.ANYTHING), relations

    def before_unseen(self) -> None:
        """Notice that something is about to be sent that passes by the cursors."""
        # Not in turn: this thread has the driver's lock, for which the one whose turn it is may wait.
        if self.is_sending:
            return
        self._check_not_undone()
        if self._log or self.runs_again or self.reads.has_used:
            self.undo("something was sent past the cursors of the connection")
        self.reads.drop()
        self.so_far.has_written = True
        self.sent += 1
        self.id_and_time = None

    @_in_turn
    def flush(self) -> None:
        """Send the buffered rows, but leave out those of objects of which one is there already.

        Raises:
            UndoChunk: if the server refuses them otherwise, or if an object that is left out cannot run again later.
        """
        if self._log:
            self._send(self._log)
            self._log = []

    def begin_object(self, number: int, *, is_direct: bool) -> None:
        """Take what comes now for an object's, and send first what should not wait for its end."""
        self.object, self.is_direct = number, is_direct
        self.reads.object = None if is_direct or self.runs_again else number
        if is_direct or len(self._log) >= MAX_ROWS:
            self.flush()

    def run_again(self) -> None:
        """Take what comes now for objects of refused rows. What they do is rolled back each time.

        Raises:
            UndoChunk: if a function has written past the buffer, since it may have changed what these objects find.
        """
        if self.so_far.has_written:
            self.undo("a statement has written, and there are objects that run again", at_their_place=True)
        self.is_direct, self.runs_again = False, True
        self.channel.send("SAVEPOINT poolsave_again")

    def end(self) -> None:
        """Send what is buffered, and let pass what ends the transaction."""
        self.reads.check()
        self.flush()
        self.runs_again = False

    def roll_back_again(self) -> None:
        """Roll back what an object has done again."""
        self.channel.send("ROLLBACK TO SAVEPOINT poolsave_again")
        self._was_refused = False

    @_in_turn
    def take_back(self, length: int, sent: int, *, is_object: bool) -> None:
        """Take back the rows that were buffered after there were `length`, if nothing was sent after `sent` times.

        The server is shown them nevertheless, since in a loop it might have refused one of them. `is_object`: what is
        buffered before them is of objects that have ended, and is sent for good.
        """
        if self.sent != sent or self._guard.is_doomed():
            self.undone = self.undone or "an object or a block failed after it had sent something"
        elif len(self._log) > length:
            before, shown = (self._log[:length], self._log[length:]) if is_object else ([], self._log)
            self._log = self._log[:length]
            try:
                self._send(before, shown)
            except UndoChunk as undo:  # Django leaves a block with an error of its own
                if undo.__cause__ is not None and not isinstance(undo.__cause__, Exception):
                    raise undo.__cause__ from None
            if before:
                self._log = []

    def _send(self, log: list[Entry], shown: Sequence[Entry] = ()) -> None:
        """Send rows, and show the server others."""
        if any(self._tables.get(table) is not None for table in self.so_far.tables_of_refused):
            # One of these may take the place of an object that was refused only by the row of another refused one.
            self.undo("rows were sent after some that are there already", at_their_place=True)
        try:
            first = [self._check, self._source.foreign_keys.before(len(log))]
            self._take_last(send_all(self.channel, log, shown, first=first, last=self._last_query(log)))
            self._check = None
        except BaseException as error:
            refused = self._send_new(log, shown, error)
            self.rows -= sum(number in refused for _plan, _row, number in log)
        self.rows += len(log)
        self.flushes += 1
        if log:
            self.sent += 1
            self.so_far.objects.add(log[-1][2])
            self.so_far.tables |= self._tables.keys()
            self._tables, self._keys, self._has_two_plans = {}, {}, False

    def _last_query(self, log: list[Entry]) -> str | None:
        more = self._source.keys.draw(Counter([plan.sequence for plan, *_rest in log if plan.sequence is not None]))
        parts = [more, ID_AND_TIME if self.asks_for_id else None]
        return " UNION ALL ".join([part for part in parts if part is not None]) or None

    def _take_last(self, rows: list[tuple[Any, Any, Any]]) -> None:
        self.id_and_time = next(((xid, now) for name, now, xid in rows if name is None), None)
        self._source.keys.add(row for row in rows if row[0] is not None)

    def _send_new(self, log: list[Entry], shown: Sequence[Entry], error: BaseException) -> set[int]:
        constraint = constraint_of(error)
        reason = f"{type(error).__name__} while buffered rows were sent" + (f" ({constraint})" if constraint else "")
        if sqlstate_of(error) in (COUNT_IS_WRONG, TYPES_DIFFER):
            self._source.refused.update(plan.table for plan, *_rest in [*log, *shown] if isinstance(plan, UpdatePlan))
        if sqlstate_of(error) != IS_THERE:
            self.undo(reason, error)
        try:
            refused = send_new(self.channel, log, shown)
        except BaseException as another:
            self.undo(reason, another)
        self.so_far.refused |= refused
        self.so_far.tables_of_refused |= {plan.table for plan, _row, number in log if number in refused}
        is_known = not (self.so_far.has_written or self._has_two_plans)
        was_early = self.object in refused or not refused.isdisjoint(self.so_far.objects)
        if was_early or not (self._leaves_out and is_known):
            self.undo(reason, error, at_their_place=True)
        return refused

    def undo(self, reason: str, error: BaseException | None = None, *, at_their_place: bool = False) -> NoReturn:
        """Give up on the transaction.

        Raises:
            UndoChunk: always.
        """
        if self.undone is None:
            self.undone, self.is_for_their_place = reason, at_their_place
            self._source.keys.forget()  # the sequences may have been set back
        raise UndoChunk(self.undone) from error

    def _check_not_undone(self) -> None:
        if self.undone is not None:
            raise UndoChunk(self.undone)
        if self._was_refused:
            self.undo("an object goes on after a row that is there already", at_their_place=True)
