"""The rows that a chunk's transaction has not sent yet.

    save() -> compiler -> hold_insert(), hold_update() -> log ...
    any other statement -> guard -> before_statement() -> flush() if it may see the log -> server
    end of the chunk -> flush() -> COMMIT

Everything is in one list, so that an exception at any moment, such as a time-out, leaves it whole. What cannot be had
exactly is *undone*: `undone` says why, every further use raises `UndoChunk`, and the worker rolls the transaction back
and runs the chunk in the ordinary way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from threading import RLock, get_ident
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from ..error_codes import sqlstate_of
from ..transaction_guard import TransactionGuard
from .catalog import Catalog
from .channel import Channel
from .fields import Row
from .inserts import MAX_OBJECTS, InsertKind, InsertPlan, InsertPlans
from .matching import WaitingValues, conditions_of, reads_once
from .sequences import KeyBlocks
from .statements import Effect, Statement, understand
from .updates import COUNT_IS_WRONG, TYPES_DIFFER, UpdatePlan, UpdatePlans

P = ParamSpec("P")
R = TypeVar("R")

Entry: TypeAlias = tuple[InsertPlan | UpdatePlan, Row, int]
"""A row, how it is sent, and the number of its object in the chunk."""

IS_THERE = "23505"
"""The SQLSTATE of a row whose unique values another row has."""
MAX_ROWS = 2000
"""Rows that are buffered before they are sent, so that memory is bounded."""
MAX_KNOWN_STATEMENTS = 1000
"""Texts of statements that are remembered with what they do."""


class UndoChunk(BaseException):  # no Exception: a function's `except Exception` must not take it for an error
    """Leaves the function of an object whose chunk has to be run again in the ordinary way."""


class Source:
    """What is known of a connection for longer than one transaction: its tables, plans and keys."""

    def __init__(self, channel: Channel, settings: str, refused: set[str]) -> None:
        """`refused` are the tables whose UPDATEs do not wait."""
        self.channel = channel
        self.refused = refused
        self.raw = channel.connection.connection
        self.catalog = Catalog(channel, settings)
        self.inserts = InsertPlans(self.catalog, channel.connection)
        self.updates = UpdatePlans(self.catalog, refused, channel.connection)
        self.keys = KeyBlocks(channel)
        self._statements: dict[str, Statement] = {}
        self.is_valid = True
        """False once a statement may have changed the schema or the session's settings."""

    def holds_for(self, connection: Any, settings: str) -> bool:
        """Whether all this is still true."""
        return self.is_valid and self.raw is connection.connection and self.catalog.settings == settings

    def understand(self, text: str | None) -> Statement:
        """Say what a statement does."""
        if text is None:
            return understand(None, {})
        statement = self._statements.get(text)
        if statement is None:
            if len(self._statements) >= MAX_KNOWN_STATEMENTS:
                self._statements.clear()
            statement = self._statements[text] = understand(text, self.catalog.relations)
        return statement


def _in_turn(
    method: Callable[Concatenate[WriteBuffer, P], R],
) -> Callable[Concatenate[WriteBuffer, P], R]:
    """Let one thread at a time in: those of a function may share its connection. No row comes while others are sent,
    and no statement overtakes them."""

    def call(self: WriteBuffer, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.lock:
            return method(self, *args, **kwargs)

    return call


class WriteBuffer:
    """Buffers the INSERTs and UPDATEs of one connection during one transaction."""

    def __init__(self, source: Source, guard: TransactionGuard, note_early: Callable[[str], None]) -> None:
        """`note_early` is told the text of each statement that makes the buffer send its rows early."""
        self.lock = RLock()
        self._source = source
        self.channel = source.channel
        self._guard = guard
        self._note_early = note_early
        self._log: list[Entry] = []
        self._values = WaitingValues(self._log, source.catalog)
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
        self.refused: list[Entry] = []
        """The rows that the server has refused since one of them is there already."""
        self.undone: str | None = None
        """Why the transaction has to be rolled back and run in the ordinary way, or None."""
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
        last = self._tables.get(plan.table)
        if last is not None and last is not plan and (last.ignores_conflicts or plan.ignores_conflicts):
            self.flush()  # which of two rows conflicts with the other depends on their order
        self._tables[plan.table] = plan
        self._append(plan, rows)
        return plan.keys(rows) if kind.returning else []

    @_in_turn
    def hold_update(self, model: Any, key: Any, values: Sequence[tuple[Any, Any, Any]], *, as_is: bool = False) -> bool:
        """Buffer the row of an UPDATE, which is taken to be there; says whether it can wait.

        `values` are as Django has them, by field. `as_is`: no look-up has prepared the key.
        """
        self._check_not_undone()
        if not self._holds or self.is_direct or self._guard.is_doomed():
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
        self._log += [(plan, row, self.object) for row in rows]
        if len(self._log) >= MAX_ROWS:
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
        effect, relations = self._source.understand(text)
        passing, self._passing = self._passing, None
        if passing is not None and passing[:2] == (get_ident(), text) and effect is Effect.READS:
            relations -= {passing[2]}
        if not is_whole:
            effect = max(effect, Effect.ANYTHING)
        if effect is Effect.UNBUFFERED:
            self.undo(f"cannot be buffered: {text}")
        if self._log and (effect >= Effect.ANYTHING or not relations.isdisjoint(self._tables)):
            self._note_early(text or "a statement without a text")
            self.flush()
        if effect is Effect.SETTINGS:
            self._holds = self._source.is_valid = False
        if effect is not Effect.READS:
            self.sent += 1

    def before_unseen(self) -> None:
        """Notice that something is about to be sent that passes by the cursors."""
        # Not in turn: this thread has the driver's lock, for which the one whose turn it is may wait.
        if self.is_sending:
            return
        self._check_not_undone()
        if self._log:
            self.undo("something was sent past the cursors of the connection")
        self.sent += 1

    @_in_turn
    def flush(self) -> None:
        """Send the buffered rows.

        Raises:
            UndoChunk: if the server refuses them.
        """
        if not self._log:
            return
        try:
            self.channel.send(";\n".join(_statements(self._log)))
        except BaseException as error:
            self._learn_from(error)
            self.undo(f"{type(error).__name__} while buffered rows were sent", error)
        self.rows += len(self._log)
        self._log = []
        self._tables, self._keys = {}, {}
        self.flushes += 1
        self.sent += 1

    @_in_turn
    def take_back(self, length: int, sent: int, *, is_object: bool) -> None:
        """Take back the rows that were buffered after there were `length`, if nothing was sent after `sent` times.

        The server is shown them nevertheless, since in a loop it might have refused one of them. `is_object`: what is
        buffered before them is of objects that have ended.
        """
        if self.sent != sent or self._guard.is_doomed():
            self.undone = self.undone or "an object or a block failed after it had sent something"
        elif len(self._log) > length:
            self._show_and_take_back(length, length if is_object else 0)

    def _show_and_take_back(self, length: int, ended: int) -> None:
        """Send the rows of objects that have ended, and the others inside a savepoint that is rolled back."""
        trial = ["SAVEPOINT poolsave_trial", *_statements(self._log[ended:])]
        trial += ["ROLLBACK TO SAVEPOINT poolsave_trial", "RELEASE SAVEPOINT poolsave_trial"]
        try:
            self.channel.send(";\n".join([*_statements(self._log[:ended]), *trial]))
        except BaseException as error:
            self._learn_from(error)
            self.undone = f"{type(error).__name__} while the rows of a failed object or block were sent"
            if not isinstance(error, Exception):
                raise
        self._log = self._log[ended:length]
        self.rows += ended
        self.flushes += 1
        self.sent += ended > 0

    def _learn_from(self, error: BaseException) -> None:
        self._source.keys.forget()
        if sqlstate_of(error) == IS_THERE:
            self.refused = self._log
        if sqlstate_of(error) in (COUNT_IS_WRONG, TYPES_DIFFER):
            self._source.refused.update(plan.table for plan, *_rest in self._log if isinstance(plan, UpdatePlan))

    def undo(self, reason: str, error: BaseException | None = None) -> None:
        """Give up on the transaction.

        Raises:
            UndoChunk: always.
        """
        self.undone = self.undone or reason
        raise UndoChunk(self.undone) from error

    def _check_not_undone(self) -> None:
        if self.undone is not None:
            raise UndoChunk(self.undone)


def _statements(log: list[Entry]) -> list[str]:
    """Give the statements in an order that gives what the single ones would: the changes of rows that have to be there
    already, then new rows, then their changes. The first change of each row comes before the second."""
    groups: dict[tuple[int, int, InsertPlan | UpdatePlan], list[Row]] = {}
    new: set[tuple[str, str | None, Any]] = set()
    changes = Counter[tuple[str, str | None, Any]]()
    for plan, row, _object in log:
        identity = plan.identity(row)
        step, change = 1, 0
        if isinstance(plan, UpdatePlan):
            changes[identity] += 1
            step, change = 2 if identity in new else 0, changes[identity]
        else:
            new.add(identity)
        groups.setdefault((step, change, plan), []).append(row)
    return [plan.statement(rows) for (*_step, plan), rows in sorted(groups.items(), key=lambda group: group[0][:2])]
