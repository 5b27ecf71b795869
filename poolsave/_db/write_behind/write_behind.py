"""Puts buffers on a worker's connections, one for each chunk's transaction.

`WriteBehind.open_savepoints` gives what takes the place of `Savepoints`: objects run one after the other as in an
ordinary chunk, and no savepoint is sent for them. The rows of an object that fails are taken out of the buffer, after
the server has been shown them. If the object had sent something before, the chunk is undone.

If the server has refused rows that are there already, `numbers_again` gives their objects, which run once more at the
end: there they send their rows at once, and fail. If that cannot be had exactly, `open_savepoints_again` is for a
second run of the chunk. There these objects keep their place, and have savepoints of their own. What is buffered before
them is sent first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from threading import get_ident
from typing import Any, TypeVar

from ..savepoints import ConnectionSavepoints, Savepoints
from ..transaction_guard import TransactionGuard
from ..transactions import FunctionBlock, OpenTransactions
from .buffer import WriteBuffer
from .catalog import read_settings
from .channel import Channel
from .compilers import Compilers, are_djangos_own
from .pacing import Batching, Pacing
from .shortcuts import blocks_are_djangos_own
from .source import Source

R = TypeVar("R")

MAX_SHARE = 0.25
"""Of a chunk's objects that keep their place in a second run. With more of them the ordinary way is faster."""
WRAPPERS = ("django.db.backends.postgresql.base", "django.contrib.gis.db.backends.postgis.base")
"""Modules of the wrappers that are known to do nothing between a statement and the server. Those of tenants choose a
schema with the next cursor that is asked for."""


class WriteBehind:
    """Write-behind of one worker."""

    def __init__(self) -> None:
        self._sources: dict[str, Source] = {}
        self._refused = defaultdict[str, set[str]](set)
        """By alias: the tables whose UPDATEs do not wait, since rows were not there."""
        self._unsteady = defaultdict[str, set[str]](set)
        """By alias: the texts of SELECTs whose answers others have changed while a chunk ran."""
        self._pacing = Pacing()
        self._last: BufferedSavepoints | None = None
        """Those of the last chunk."""

    def open_savepoints(self, transactions: OpenTransactions) -> Savepoints:
        """Open the objects' savepoints in transactions that have just begun: buffered ones, or ordinary ones if rows
        cannot be buffered here or if that did not pay before."""
        self._last = None
        if self._pacing.is_resting():
            self._sources.clear()  # what changes the schema meanwhile is not noticed
            return Savepoints(transactions)
        reason = None if transactions.outermost else "it runs inside a transaction of the caller's"
        for guard in transactions.guards:
            reason = reason or why_unbuffered(guard.connection)
        if reason is None:
            return self._open_buffers(transactions)
        self._pacing.refuse(reason)
        return Savepoints(transactions)

    def _open_buffers(self, transactions: OpenTransactions) -> Savepoints:
        try:
            sources = [self._source(guard.connection) for guard in transactions.guards]
        except BaseException as error:
            return self._undone(transactions, error, "the catalog was read")
        self._last = BufferedSavepoints(transactions, sources, self._pacing)
        return self._last

    def _undone(self, transactions: OpenTransactions, error: BaseException, when: str) -> Savepoints:
        self._pacing.end(rows=0, flushes=0, undone=f"{type(error).__name__} while {when}")
        savepoints = Savepoints(transactions)
        savepoints.undone = True
        return savepoints

    def numbers_again(self) -> Sequence[int]:
        """Send what is buffered, and give the objects of refused rows, which are to run again at the end."""
        return () if self._last is None else self._last.numbers_again()

    def can_try_again(self) -> bool:
        """Whether the last chunk was undone only since objects of refused rows have to run at their place."""
        return self._last is not None and self._last.is_for_their_place

    def open_savepoints_again(self, transactions: OpenTransactions) -> Savepoints:
        """Open them for a second run of the chunk, in which the objects whose rows were refused send them at once."""
        last, self._last = self._last, None
        assert last is not None
        try:
            sources = [self._source(guard.connection) for guard in transactions.guards]
        except BaseException as error:
            return self._undone(transactions, error, "the catalog was read")
        objects = last.refused
        if len(objects) > MAX_SHARE * last.count:
            self._pacing.end(rows=0, flushes=0, undone=last.reason)
            return Savepoints(transactions)
        return BufferedSavepoints(transactions, sources, self._pacing, objects)

    def open_ordinary_savepoints(self, transactions: OpenTransactions) -> Savepoints:
        """Open those of a chunk that was undone."""
        self._last = None
        return Savepoints(transactions)

    def _source(self, connection: Any) -> Source:
        source = self._sources.get(connection.alias)
        if source is None or not source.holds_for(connection):
            alias, channel = connection.alias, Channel(connection)
            source = Source(channel, read_settings(channel), self._refused[alias], self._unsteady[alias])
            self._sources[alias] = source
        return source

    def take_counts(self) -> Batching | None:
        """Give what was done since the last time, for the report."""
        return self._pacing.take()


def why_unbuffered(connection: Any) -> str | None:
    """Say why rows cannot be buffered on this connection, or None if they can."""
    raw = connection.connection
    if type(connection).__module__ not in WRAPPERS:
        return f"{type(connection).__module__} is not Django's own backend for PostgreSQL"
    if not are_djangos_own(connection) or "chunked_cursor" in vars(connection):
        return "another package answers queries in the place of Django's compilers"
    if not hasattr(raw, "pgconn") and not getattr(raw, "sees_all", False):
        return "there are cursors of psycopg2 on the connection that poolsave cannot see"
    if _parameter(raw, "standard_conforming_strings") != "on" or _parameter(raw, "client_encoding") != "UTF8":
        return "standard_conforming_strings is off, or the client's encoding is not UTF8"
    return None


def _parameter(raw: Any, name: str) -> str | None:
    value: str | None = raw.info.parameter_status(name)
    return value


class BufferedSavepoints(Savepoints):
    """The counterpart of `Savepoints` for buffered chunks."""

    def __init__(
        self,
        transactions: OpenTransactions,
        sources: list[Source],
        pacing: Pacing,
        direct: Collection[int] = (),
    ) -> None:
        """The objects with numbers in `direct` send their rows at once; they were found in a first run."""
        pairs = zip(sources, transactions.guards, strict=True)
        leaves_out = len(sources) == 1 and not direct
        self.buffers = [WriteBuffer(source, guard, pacing.note, leaves_out=leaves_out) for source, guard in pairs]
        self._pacing, self._direct = pacing, direct
        self.count = 0
        """Objects that were begun."""
        self._runs_again = False
        """Whether objects of refused rows run now."""
        super().__init__(transactions)

    @property
    def undone(self) -> bool:  # type: ignore[override]  # read only
        """Whether the transactions have to be rolled back, and the chunk has to be run in the ordinary way."""
        for buffer in self.buffers:  # noqa: SIM110  read after each object, and faster than any()
            if buffer.undone is not None:
                return True
        return False

    @property
    def reason(self) -> str | None:
        """Why the transactions have to be rolled back, or None."""
        return next((buffer.undone for buffer in self.buffers if buffer.undone is not None), None)

    @property
    def refused(self) -> set[int]:
        """The objects whose rows were left out."""
        return set[int]().union(*(buffer.so_far.refused for buffer in self.buffers))

    @property
    def is_for_their_place(self) -> bool:
        """Whether the chunk was undone only since these have to run at their place."""
        return not self._direct and any(buffer.is_for_their_place for buffer in self.buffers)

    @property
    def id_and_time(self) -> tuple[str | None, int] | None:
        """The id and the time that came with the last rows, if nothing was sent since then."""
        return self.buffers[0].id_and_time

    def _open_each(self, transactions: OpenTransactions) -> list[ConnectionSavepoints]:
        return [_BufferedConnection(*pair) for pair in zip(transactions.guards, self.buffers, strict=True)]

    def around(self, call: Callable[[], R]) -> R:
        if self._runs_again:
            super().around(call)
            self.buffers[0].undo("an object whose row was there already has succeeded", at_their_place=True)
        for buffer in self.buffers:
            buffer.begin_object(self.count, is_direct=self.count in self._direct)
        self.count += 1
        return super().around(call)

    def numbers_again(self) -> Sequence[int]:
        """Send what is buffered, and give the objects of refused rows. Those that run from now on are these."""
        for buffer in self.buffers:
            buffer.reads.check()
            buffer.asks_for_id = self.asks_for_id and len(self.buffers) == 1
            buffer.begin_object(self.count, is_direct=True)
        refused = sorted(self.refused)
        self._runs_again = bool(refused)
        for buffer in self.buffers if refused else ():
            buffer.run_again()
        return refused

    def close(self) -> None:
        """Restore the connections' own methods, and count what was done, unless the chunk will be tried again."""
        super().close()
        if self.is_for_their_place:
            return
        rows, flushes = sum(each.rows for each in self.buffers), sum(each.flushes for each in self.buffers)
        spared = sum(each.reads.spared for each in self.buffers)
        repeated = bool(self._direct or self.refused)
        self._pacing.end(rows=rows, flushes=flushes, undone=self.reason, repeated=repeated, spared=spared)


class _BufferedConnection(ConnectionSavepoints):
    """Keeps savepoints in memory: each is the length of the buffer's log. Those of a direct object are sent, and those
    inside of an object that runs again. Its own is one for all that run again, since all of them have to fail."""

    def __init__(self, guard: TransactionGuard, buffer: WriteBuffer) -> None:
        super().__init__(guard)
        self._buffer = buffer
        self._marks: list[tuple[str, int, int]] = []
        self._compilers = Compilers(self._connection, buffer)
        self._chunked_cursor = self._connection.chunked_cursor
        self._connection.chunked_cursor = self._watched_cursor
        self._block = FunctionBlock(self._connection.alias, True, False)
        self._thread = str(get_ident()).replace("-", "")
        self._is_short = blocks_are_djangos_own()
        guard.buffer = buffer

    def begin(self) -> FunctionBlock:
        """Begin an object. If its savepoint is not sent, all that `atomic()` would do is done here, in less time."""
        if not self._is_short or self._buffer.is_direct or self._buffer.runs_again:
            return super().begin()
        connection = self._connection
        connection.validate_no_broken_transaction()
        connection.savepoint_state += 1
        self._own = f"s{self._thread}_x{connection.savepoint_state}"
        connection.savepoint_ids.append(self._own)
        connection.atomic_blocks.append(self._block)
        self._marks.append((self._own, len(self._buffer), self._buffer.sent))
        return self._block

    def end(self, block: FunctionBlock) -> None:
        """End an object that has succeeded, likewise."""
        if block is self._block and self._is_innermost():
            self._connection.atomic_blocks.pop()
            self._connection.savepoint_ids.pop()
            self._marks.pop()
        else:
            super().end(block)

    def _is_innermost(self) -> bool:
        connection = self._connection
        return (
            connection.atomic_blocks[-1:] == [self._block]
            and connection.savepoint_ids[-1:] == [self._own]
            and len(self._marks) == 1
            and not connection.needs_rollback
            and not connection.closed_in_transaction
        )

    def _watched_cursor(self) -> Any:
        # On psycopg 3 Django makes a cursor on the server by its class, past the connection.
        cursor = self._chunked_cursor()
        self._guard.watch_cursor(cursor.cursor)
        return cursor

    def _on_set(self, name: str) -> None:
        if self._is_beginning:
            self._own = name
        if self._is_sent(name):
            self._buffer.channel.send(self._connection.ops.savepoint_create_sql(name))
        elif not self._buffer.runs_again:
            self._marks.append((name, len(self._buffer), self._buffer.sent))

    def _on_release(self, name: str) -> None:
        if self._is_sent(name):
            self._buffer.channel.send(self._connection.ops.savepoint_commit_sql(name))
        elif not self._buffer.runs_again:
            del self._marks[self._find(name) :]

    def _on_rollback(self, name: str) -> None:
        if self._is_sent(name):
            self._buffer.channel.send(self._connection.ops.savepoint_rollback_sql(name))
        elif self._buffer.runs_again:
            self._buffer.roll_back_again()
        else:
            index = self._find(name)
            for _name, length, sent in self._marks[index : index + 1]:
                self._buffer.take_back(length, sent, is_object=index == 0)
            del self._marks[index + 1 :]

    def _is_sent(self, name: str) -> bool:
        return self._buffer.is_direct or (self._buffer.runs_again and name != self._own)

    def _find(self, name: str) -> int:
        for index in reversed(range(len(self._marks))):
            if self._marks[index][0] == name:
                return index
        self._buffer.undone = self._buffer.undone or f"there is no savepoint {name}"
        return len(self._marks)

    def release(self) -> None:
        """Send what is buffered."""
        self._buffer.end()

    def close(self) -> None:
        self._guard.buffer = None
        del self._connection.chunked_cursor
        self._compilers.close()
        super().close()
