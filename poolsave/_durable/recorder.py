"""What a worker writes into the ledger: the last row of each transaction of the work, fenced by the lease.

The row commits with the work or not at all. It takes the run from the lease's row of this session's generation. If
another session has taken the run over, there is none. Then the database refuses the NULL that is in its place, also
where it gets the statement together with COMMIT, and the work is rolled back.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, groupby
from typing import Any, NamedTuple

from django.db import DataError, Error, IntegrityError, ProgrammingError, connections
from django.utils import timezone

from .._db.error_codes import is_unprepared, refuses_null
from .._db.transaction_guard import LastStatement, guard_of
from .._runtime.foreign_exceptions import is_a, text_of
from .._worker.current import current
from .._worker.replies import NOT_STARTED, ObjectResult
from ..errors import LeaseLost, RowGone
from ..executors.protocol import Marks
from .failures import failure_of, insert_failures
from .keys import digest_of
from .ranges import Range

FIRST_NOTE = 2
"""The least note that stands for a sequence: 0 is none, and 1 says that there was nothing to save."""
HAS_CALLBACKS = 1 << 64
"""Added to a note: there are `on_commit` callbacks, which come after the COMMIT."""
CHUNK, LEASE, FAILURE = "poolsave_ledger_chunk", "poolsave_ledger_lease", "poolsave_ledger_failure"
SHARED_LOCKS = {"postgresql": " FOR KEY SHARE", "mysql": " LOCK IN SHARE MODE"}
"""By vendor, what a take-over waits for, which locks the lease FOR UPDATE. SQLite has one writer."""

SCHEMA_QUERY = (
    "SELECT nspname FROM pg_namespace n JOIN pg_class c ON n.oid = c.relnamespace WHERE c.oid = to_regclass(%s)"
)

PREPARE_AFTER = 3
"""Rows of a connection after which PostgreSQL is to keep the plan of their statement: to make it takes longer than to
insert the row."""
_numbers = count()
"""Of prepared statements, so that each name occurs once in a process."""


class ChunkTaken(LeaseLost):
    """Another worker has committed this chunk, which was delivered twice."""


class LedgerUnwritable(LeaseLost):
    """The function has left the transaction so that the ledger's row cannot be written, and would for each object."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name)
        self.args = (name, reason)  # by these it is pickled
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"the ledger's row of the run {self.name!r} could not be written in the transaction of the work: "
            f"{self.reason}; grant the role that the function sets SELECT and UPDATE on {LEASE}, and SELECT, INSERT "
            f"and UPDATE on {CHUNK} and {FAILURE}"
        )


class PlacedPayload(NamedTuple):
    """A chunk with its place in the run."""

    low: str
    """The key before its first one."""
    sequence: int
    """Of its first object."""
    keys: Sequence[str]
    """Of its objects."""
    failures: Sequence[int] | None
    """In a session that tries failures again: their rows."""
    payload: Any

    def to_bytes(self) -> bytes:
        return pickle.dumps(tuple(self), pickle.HIGHEST_PROTOCOL)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRecorderSpec:
    """What each worker of a session knows about it."""

    alias: str
    name: str
    run_id: int
    generation: int
    records: bool
    digests: bool
    """Whether ranges have a digest of their keys."""
    prepares: bool = False
    """Whether PostgreSQL may keep a statement for as long as the connection is open."""
    schema: str = ""
    """PostgreSQL's, of the ledger's tables: the function may set another `search_path`. Empty: as it is found."""

    def open(self) -> LedgerRecorder:
        return LedgerRecorder(self)


class LedgerRecorder:
    """A worker's recorder. See `Recorder`."""

    def __init__(self, spec: LedgerRecorderSpec) -> None:
        self._spec = spec
        self.records = spec.records
        self.lost: BaseException | None = None
        self._chunk = PlacedPayload("", 0, (), None, None)
        self._current = current()
        self._row = RowStatement(spec)

    def begin(self, payload: Any) -> Any:
        self._chunk = payload if isinstance(payload, PlacedPayload) else PlacedPayload(*pickle.loads(payload))
        # That was about the chunk before. A lost lease stays lost.
        if isinstance(self.lost, ChunkTaken):
            self.lost = None
        return self._chunk.payload

    def enter(self, offset: int) -> None:
        self._current.key = f"{self._spec.name}:{self._chunk.keys[offset]}"

    def leave(self) -> None:
        self._current.key = None

    def record_object(self, offset: int, marks: Marks, *, callbacks: bool) -> int:
        note = self._note(offset, marks, callbacks=callbacks)
        if self._chunk.failures is not None:
            with self._as_session():
                self._resolve([self._chunk.failures[offset]])
        else:
            self._insert(self._range(offset, offset + 1, done=1), is_last=True)
        return note

    def record_chunk(self, first: int, results: Sequence[ObjectResult], marks: Marks, *, callbacks: bool) -> int:
        ran = [result for result in results if result is not NOT_STARTED]
        if not ran:
            return 0
        note = self._note(first, marks, callbacks=callbacks)
        if self._chunk.failures is not None:
            saved = [index for index, result in enumerate(ran, first) if result.attempt.error is None]
            with self._as_session():
                self._resolve([self._chunk.failures[index] for index in saved])
            return note
        failed = [result.attempt.error is not None and not _is_gone(result) for result in ran]
        if any(failed):
            with self._as_session():
                self._insert_failures(first, ran)
        for is_gone, part in groupby(range(len(ran)), lambda index: _is_gone(ran[index])):  # so that each row is known
            offsets = [*part]
            lost = sum(failed[index] for index in offsets)
            counts = {"skipped": len(offsets)} if is_gone else {"done": len(offsets) - lost, "failed": lost}
            ended = self._range(first + offsets[0], first + offsets[-1] + 1, **counts)
            self._insert(ended, is_last=offsets[-1] + 1 == len(ran))
        return note

    def _note(self, first: int, marks: Marks, *, callbacks: bool) -> int:
        note = self._chunk.sequence + first + FIRST_NOTE + (HAS_CALLBACKS if callbacks else 0)
        marks.note(note)
        return note

    def _range(self, first: int, end: int, **counts: int) -> Range:
        keys = self._chunk.keys
        low = keys[first - 1] if first else self._chunk.low
        digest = digest_of(keys[first:end]) if self._spec.digests else None
        return Range(self._chunk.sequence + first, low, keys[end - 1], digest=digest, **counts)

    def _insert_failures(self, first: int, ran: Sequence[ObjectResult]) -> None:
        failures = [
            failure_of(self._spec.run_id, self._chunk.keys[index], result.attempt.error, attempts=result.attempts)
            for index, result in enumerate(ran, first)
            if result.attempt.error is not None and not _is_gone(result)
        ]
        insert_failures(failures, self._spec.alias)

    def _insert(self, ended: Range, *, is_last: bool) -> None:
        """Insert a row now, or with COMMIT if it is the last one and the driver can do so."""
        connection = connections[self._spec.alias]
        try:
            text = self._row.text(connection, ended)
            guard = guard_of(connection.connection)
            is_outermost = is_last and not connection.savepoint_ids
            if is_outermost and text.isascii() and guard is not None and guard.takes_last():
                guard.last = LastStatement(text, self._explained)
                return
            with connection.cursor() as cursor:
                cursor.execute(text)
        except Error as error:
            explained = self._explained(error)
            if explained is error:
                raise
            raise explained from error

    def _explained(self, error: BaseException) -> BaseException:
        """Give what an error of the row's statement means."""
        if refuses_null(error):
            self.lost = LeaseLost(self._spec.name)
        elif is_a(error, IntegrityError):
            self.lost = ChunkTaken(self._spec.name)
        elif is_unprepared(error):  # the function has had all such statements forgotten
            self._row.stop_preparing()
            return error
        elif is_a(error, ProgrammingError) or is_a(error, DataError):
            self._unwritable(error)
        return self.lost or error

    def _resolve(self, failures: Sequence[int]) -> None:
        spec, connection = self._spec, connections[self._spec.alias]
        from ..ledger.models import Failure

        rows = Failure.objects.using(spec.alias).filter(pk__in=failures, resolved_at=None)
        if rows.update(resolved_at=timezone.now(), resolution="retried") != len(failures):
            self.lost = ChunkTaken(spec.name)
            raise self.lost
        with connection.cursor() as cursor:
            cursor.execute(lease_query(connection.vendor, spec.schema), [spec.run_id, spec.generation])
            if cursor.fetchone() is None:
                self._lose_lease()

    @contextmanager
    def _as_session(self) -> Iterator[None]:
        """Let statements of Django's find the ledger's tables where this session does."""
        connection, schema = connections[self._spec.alias], self._spec.schema

        def qualify(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
            return execute(sql.replace(f'"{FAILURE}"', qualified(FAILURE, schema)), params, many, context)

        try:
            with connection.execute_wrapper(qualify):
                yield
        except (ProgrammingError, DataError) as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: BaseException) -> LeaseLost:
        self.lost = LedgerUnwritable(self._spec.name, text_of(error).partition("\n")[0])
        return self.lost

    def _lose_lease(self) -> None:
        self.lost = LeaseLost(self._spec.name)
        raise self.lost


def _is_gone(result: ObjectResult) -> bool:
    return isinstance(result.attempt.error, RowGone)


class RowStatement:
    """The statement that inserts a row, if the lease is this session's."""

    def __init__(self, spec: LedgerRecorderSpec) -> None:
        self._spec = spec
        self._can_prepare = spec.prepares
        self._raw: Any = None
        """The driver's connection for which the text is made."""
        self._begin = ""
        """What stands before the values."""
        self._rows = 0
        """How many rows that connection has had."""

    def text(self, connection: Any, ended: Range) -> str:
        """Give the whole statement.

        Raises:
            Error: of PostgreSQL, as it is asked to prepare the statement.
        """
        if connection.connection is not self._raw:
            self._raw, self._rows, self._begin = connection.connection, 0, self._unprepared(connection.vendor)
        self._rows += 1
        if self._rows == PREPARE_AFTER and self._can_prepare and connection.vendor == "postgresql":
            self._prepare(connection)
        low, high = (f"'{key}'" if key.isalnum() else quoted(key, connection.vendor) for key in (ended.low, ended.high))
        digest = "NULL" if ended.digest is None else ended.digest
        counts = f"{ended.done}, {ended.failed}, {ended.skipped}"
        return f"{self._begin}{ended.sequence}, {low}, {high}, {counts}, {digest})"

    def stop_preparing(self) -> None:
        """Give the statement itself from now on."""
        self._can_prepare, self._raw = False, None

    def _unprepared(self, vendor: str) -> str:
        chunk, lease = (qualified(table, self._spec.schema) for table in (CHUNK, LEASE))
        mine = f"run_id = {self._spec.run_id} AND generation = {self._spec.generation}"
        fence = f"(SELECT run_id FROM {lease} WHERE {mine}{SHARED_LOCKS.get(vendor, '')})"  # noqa: S608
        return f"INSERT INTO {chunk} (run_id, sequence, low, high, done, failed, skipped, digest) VALUES ({fence}, "  # noqa: S608

    def _prepare(self, connection: Any) -> None:
        """Have the server keep the statement, unless a pooler gives each transaction another session of it."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            # A pooler tells its clients of no session of the server's, but has numbers of its own for them.
            if cursor.fetchone()[0] != self._raw.info.backend_pid:
                return
            name, types = f"poolsave_row_{next(_numbers)}", "bigint, text, text, integer, integer, integer, bigint"
            cursor.execute(f"PREPARE {name} ({types}) AS {self._begin}$1, $2, $3, $4, $5, $6, $7)")
            self._begin = f"EXECUTE {name}("


def quoted(key: str, vendor: str) -> str:
    """Give a key as a literal of SQL, which means the same however the server takes backslashes."""
    if vendor == "mysql":
        return f"_utf8mb4 x'{key.encode().hex()}'"
    text = key.replace("'", "''")
    return "E'{}'".format(text.replace("\\", "\\\\")) if vendor == "postgresql" else f"'{text}'"


def lease_query(vendor: str, schema: str = "") -> str:
    """Give the statement that finds the lease of a run and a generation, and keeps it from others."""
    lease = qualified(LEASE, schema)
    return f"SELECT 1 FROM {lease} WHERE run_id = %s AND generation = %s{SHARED_LOCKS.get(vendor, '')}"  # noqa: S608


def qualified(table: str, schema: str) -> str:
    """Give the name of a table in SQL, with that of its schema if one is given."""
    return '"{}"."{}"'.format(schema.replace('"', '""'), table) if schema else table


def schema_of(alias: str) -> str:
    """Give PostgreSQL's schema of the ledger's tables, as `search_path` finds them now; empty on other databases."""
    connection = connections[alias]
    if connection.vendor != "postgresql":
        return ""
    with connection.cursor() as cursor:
        cursor.execute(SCHEMA_QUERY, [LEASE])
        found = cursor.fetchone()
    return str(found[0]) if found else ""
