"""Asks PostgreSQL whether a transaction was committed, when the answer to its COMMIT did not arrive.

After a crash the server has no trace of transactions that never reached its log, and assigns their ids again. So does a
standby that is promoted before it received them. An answer about an id therefore counts only while the id is known to
belong to the same transaction still.

The engine calls `commit_status` in the caller's process. Workers write the note (`_db/transactions.py: record_xid`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

from django.db import Error
from django.db.utils import load_backend

from ..outcomes import Status
from .error_codes import connection_lost, is_starting_or_full, sqlstate_of
from .inspection import PATIENCE

NO_XID = 1
"""The note of a transaction without an id: PostgreSQL assigns none before the first write, and 3 is its smallest."""
FIELD_BITS = 64
"""Bits of one field of a note: PostgreSQL's ids and microseconds fit."""
MAX_WAIT = 30.0
"""Seconds that a server gets to end the transaction. One that takes no connections gets `PATIENCE`."""
POLL_INTERVAL = 0.05
"""Seconds between two questions."""
MAX_UNWATCHED = 1.0
"""Seconds before the first question that are too short for the server to crash, recover, assign the id again and crash
once more. A start alone takes about half of that."""
MAX_PAUSE = 0.5
"""Seconds between two questions that are too short for the same."""
ANSWERS = {"committed": Status.SUCCEEDED, "aborted": Status.FAILED}
UNKNOWN_XID = "22023"
"""The SQLSTATE for an id that is "in the future": the crash left nothing of the transaction."""
IDENTITY = """
    SELECT system_identifier::text,
        CASE WHEN pg_is_in_recovery() THEN NULL ELSE substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END
    FROM pg_control_system()
"""
"""Identifies the cluster and its timeline: a promoted standby begins a new timeline. pg_control_checkpoint() has the
new one only after the next checkpoint."""
WAS_RESET = """
    SELECT extract(epoch FROM stats_reset) * 1000000 > %s, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
    FROM pg_stat_bgwriter
"""
"""A crash resets the statistics. So can their owner, with pg_stat_reset_shared()."""
RECOVERED = """
    SELECT split_part(next_xid, ':', 1)::bigint * 4294967296 + split_part(next_xid, ':', 2)::bigint > %s
    FROM pg_control_checkpoint(), pg_stat_bgwriter
    WHERE redo_lsn = checkpoint_lsn AND checkpoint_time >= date_trunc('second', stats_reset)
"""
"""Whether recovery met the id. There is no row if the last checkpoint is not the one that ends a recovery."""


class TransactionNote(NamedTuple):
    """Identifies a transaction for a later question. It is stored as one number, in memory that survives the worker."""

    xid: int
    noted_at: int
    """When the note was written, right before the COMMIT: microseconds by the server's clock."""
    server: int
    """Identifies the cluster and its timeline; 0 if the server cannot say."""
    waited: int = 0
    """Microseconds from the COMMIT to the error that stands for its missing answer."""

    def to_int(self) -> int:
        return sum(field << FIELD_BITS * index for index, field in enumerate(self))

    @classmethod
    def from_int(cls, number: int) -> TransactionNote:
        return cls(*(number >> FIELD_BITS * index & (1 << FIELD_BITS) - 1 for index in range(len(cls._fields))))


def unanswered_note(note: int, seconds: float) -> int:
    """Add to a note how many seconds its COMMIT has waited for an answer in vain."""
    if note <= NO_XID:
        return note
    return TransactionNote.from_int(note)._replace(waited=int(seconds * 1_000_000)).to_int()


def identify_server(connection: Any) -> int | None:
    """Give a number for a server's cluster and timeline; None while it is a standby."""
    with connection.cursor() as cursor:
        cursor.execute(IDENTITY)
        cluster, timeline = cursor.fetchone()
    if timeline is None:
        return None
    return int.from_bytes(blake2b(f"{cluster} {timeline}".encode(), digest_size=FIELD_BITS // 8).digest(), "big")


def remember_server(connection: Any) -> None:
    """Identify the server, once per connection and outside of any transaction.

    Raises:
        Error: if no connection can be opened.
    """
    connection.ensure_connection()
    driver, _server = getattr(connection, "_poolsave_server", (None, 0))
    if driver is connection.connection:
        return
    try:
        server = identify_server(connection) or 0
    except Error as error:  # not every server that speaks PostgreSQL's protocol has these functions
        if connection_lost(error):
            raise
        server = 0
    connection._poolsave_server = (connection.connection, server)


def identity_of(connection: Any) -> int:
    """Give what `remember_server` stored for the open connection; 0 if that is another connection."""
    known: tuple[Any, int] = getattr(connection, "_poolsave_server", (None, 0))
    driver, server = known
    return server if driver is connection.connection else 0


def commit_status(note: int, alias: str, settings: Mapping[str, Any]) -> Status:
    """Give SUCCEEDED, FAILED, or LOST if the server cannot say. Uses a connection of its own and closes it.

    Source: pg_xact_status() in PostgreSQL's "System Information Functions".
    """
    if note == NO_XID:
        return Status.SUCCEEDED  # whether it was committed or not, there was nothing to save
    connection = load_backend(settings["ENGINE"]).DatabaseWrapper(dict(settings), alias)
    inquiry = _Inquiry(TransactionNote.from_int(note))
    deadline = time.monotonic() + MAX_WAIT
    try:
        while time.monotonic() < deadline:
            answer = inquiry.ask(connection)
            if answer != "in progress":
                return ANSWERS.get(answer or "", Status.LOST)
            if inquiry.is_in_vain:
                break
            time.sleep(POLL_INTERVAL)
    finally:
        connection.close()
    return Status.LOST


class _Watch:
    """How long a server has been asked without a pause, about any of its transactions.

    The first inquiry waits until the server is up again. The others follow at once and share its knowledge.
    """

    def __init__(self) -> None:
        self.since = self.until = time.monotonic()
        self.unwatched = MAX_UNWATCHED
        self._answered = False
        self._silent_since: float | None = None

    @property
    def is_in_vain(self) -> bool:
        """Whether the server has not answered for so long that the run ends."""
        return self._silent_since is not None and time.monotonic() - self._silent_since > PATIENCE

    def tried(self, *, answered: bool, comes_soon: bool = False) -> None:
        """Record a question, and whether it was answered."""
        now = time.monotonic()
        if self._answered and not answered:  # it has crashed between these two questions
            self.since, self.unwatched = now, MAX_PAUSE
        if answered or comes_soon:
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = now
        self._answered, self.until = answered, now


_watches: dict[int, _Watch] = {}


def _watch(server: int) -> _Watch:
    watch = _watches.get(server)
    if watch is None or time.monotonic() - watch.until > MAX_PAUSE:
        watch = _watches[server] = _Watch()
    return watch


class _Inquiry:
    """Asks about one transaction repeatedly.

    An answered question proves that the server has not crashed since the note. Between two questions there is hardly
    time for two crashes.
    """

    def __init__(self, note: TransactionNote) -> None:
        self._note = note
        self._no_crash_before = note.noted_at + note.waited
        """Microseconds by the server's clock. If there was a crash, the first one came at the end of `waited`."""
        self._watch = _watch(note.server)

    @property
    def is_in_vain(self) -> bool:
        return self._watch.is_in_vain

    def ask(self, connection: Any) -> str | None:
        """Give the answer of pg_xact_status(), or what it means after a crash; None if that is unknown."""
        try:
            answer = self._answer(connection)
        except Error as error:
            connection.close()  # the server is not up again yet
            if sqlstate_of(error) == UNKNOWN_XID:
                return "aborted"
            self._watch.tried(answered=False, comes_soon=is_starting_or_full(error))
            return "in progress"
        self._watch.tried(answered=True)
        return answer

    def _answer(self, connection: Any) -> str | None:
        if self._note.server:
            server = identify_server(connection)
            if server is None:  # it will be promoted, or another server takes its address
                connection.close()
                return "in progress"
            if server != self._note.server:
                return None  # another cluster, or a standby that has assigned the id itself
        with connection.cursor() as cursor:
            answer: str | None = _row(cursor, "SELECT pg_xact_status(%s::text::xid8)", str(self._note.xid))[0]
            if answer == "aborted":
                return answer  # rolled back, whichever transaction has the id now
            crashed, now = _row(cursor, WAS_RESET, self._note.noted_at) or (False, 0)
            if not crashed:
                self._no_crash_before = max(now, self._no_crash_before)
                return answer
            recovered = _row(cursor, RECOVERED, self._note.xid)
        if recovered is None:
            return None
        return "aborted" if not recovered[0] else answer if self._was_watching(now) else None

    def _was_watching(self, now: int) -> bool:
        """Whether there was no time for a second crash, after whose recovery another transaction could have the id."""
        started = now - (time.monotonic() - self._watch.since) * 1_000_000
        return started - self._no_crash_before <= self._watch.unwatched * 1_000_000


def _row(cursor: Any, query: str, parameter: object) -> Any:
    cursor.execute(query, [parameter])
    return cursor.fetchone()
