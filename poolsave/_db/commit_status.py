"""Asks PostgreSQL what became of a transaction whose COMMIT nobody heard answered.

A crash makes the server forget transactions of which nothing had reached its log, and give their ids again. So does a
failover to a standby that had not heard of them. So an answer about an id counts only as far as it is known that the id
is still that of the same transaction.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

from django.db import Error
from django.db.utils import load_backend

from ..outcomes import Status
from .error_codes import connection_lost, sqlstate_of

NO_XID = 1
"""Noted for a transaction without an id: PostgreSQL assigns none before the first write, and 3 is its smallest."""
FIELD_BITS = 64
MAX_WAIT = 30.0
"""Seconds that a server gets to end the transaction, or to come back after a crash."""
POLL_INTERVAL = 0.05
MAX_UNWATCHED = 1.0
"""Seconds before the first question in which the server cannot have crashed, recovered, given the id again and crashed
once more: to start it takes about half of that."""
MAX_PAUSE = 0.5
"""The same between two questions."""
ANSWERS = {"committed": Status.SUCCEEDED, "aborted": Status.FAILED}
UNKNOWN_XID = "22023"
"""The SQLSTATE for an id that is "in the future": the crash left nothing of the transaction."""
IDENTITY = """
    SELECT system_identifier::text,
        CASE WHEN pg_is_in_recovery() THEN NULL ELSE substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END
    FROM pg_control_system()
"""
"""Which cluster it is, and which timeline: a promoted standby begins a new one. Not that of pg_control_checkpoint(),
which is told only by the next checkpoint."""
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
"""Whether recovery came across the id. No row, if the last checkpoint is not the one that a recovery ends with."""


class TransactionNote(NamedTuple):
    """By what a server can say later what became of a transaction. It travels as a number, since it is kept where a
    worker's death cannot take it."""

    xid: int
    moment: int
    """When it was noted, right before the COMMIT, by the server's clock in microseconds."""
    server: int
    """Says which cluster and timeline it was; 0 if the server cannot say."""
    waited: int = 0
    """Microseconds until the worker knew that its COMMIT would not be answered."""

    def to_int(self) -> int:
        return sum(field << FIELD_BITS * place for place, field in enumerate(self))

    @classmethod
    def from_int(cls, number: int) -> TransactionNote:
        return cls(*(number >> FIELD_BITS * place & (1 << FIELD_BITS) - 1 for place in range(len(cls._fields))))


def unanswered_note(note: int, seconds: float) -> int:
    """The note of a COMMIT that has failed to be answered for so long."""
    if note <= NO_XID:
        return note
    return TransactionNote.from_int(note)._replace(waited=int(seconds * 1_000_000)).to_int()


def identify_server(connection: Any) -> int | None:
    """Which cluster and timeline a server is, as a number; None if it is a standby still."""
    with connection.cursor() as cursor:
        cursor.execute(IDENTITY)
        cluster, timeline = cursor.fetchone()
    if timeline is None:
        return None
    return int.from_bytes(blake2b(f"{cluster} {timeline}".encode(), digest_size=FIELD_BITS // 8).digest(), "big")


def remember_server(connection: Any) -> None:
    """Ask outside of any transaction, once per connection, which server that is.

    Raises:
        Error: if there is no connection to be had.
    """
    connection.ensure_connection()
    driver, _server = getattr(connection, "_poolsave_server", (None, 0))
    if driver is connection.connection:
        return
    try:
        server = identify_server(connection) or 0
    except Error as error:  # not all that speak PostgreSQL's language have these functions
        if connection_lost(error):
            raise
        server = 0
    connection._poolsave_server = (connection.connection, server)


def identity_of(connection: Any) -> int:
    """What `remember_server` has found on the connection that is open."""
    known: tuple[Any, int] = getattr(connection, "_poolsave_server", (None, 0))
    driver, server = known
    return server if driver is connection.connection else 0


def commit_status(note: int, alias: str, settings: Mapping[str, Any]) -> Status:
    """SUCCEEDED, FAILED, or LOST if the server cannot say. On a connection of its own, which is closed again.

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
            time.sleep(POLL_INTERVAL)
    finally:
        connection.close()
    return Status.LOST


class _Watch:
    """How long the server has been asked without a pause, about whichever transaction: one question waits until it is
    up again, and the others come right after."""

    def __init__(self) -> None:
        self.since = self.until = time.monotonic()
        self.unwatched = MAX_UNWATCHED
        self._answered = False

    def tried(self, *, answered: bool) -> None:
        """One question more."""
        now = time.monotonic()
        if self._answered and not answered:  # it crashes, while it is being watched
            self.since, self.unwatched = now, MAX_PAUSE
        self._answered, self.until = answered, now


_watches: dict[int, _Watch] = {}


def _watch(server: int) -> _Watch:
    watch = _watches.get(server)
    if watch is None or time.monotonic() - watch.until > MAX_PAUSE:
        watch = _watches[server] = _Watch()
    return watch


class _Inquiry:
    """Asks about one transaction, again and again. What is known by then is that the server did not crash between the
    note and a question that it has answered, and hardly twice between two questions."""

    def __init__(self, note: TransactionNote) -> None:
        self._note = note
        self._sound_until = note.moment + note.waited
        """By the server's clock; at the end of `waited` came the first crash, if there was one."""
        self._watch = _watch(note.server)

    def ask(self, connection: Any) -> str | None:
        """What pg_xact_status() says, or what that means after a crash; None if nobody can say."""
        try:
            answer = self._answer(connection)
        except Error as error:
            connection.close()  # the server is not up again yet
            if sqlstate_of(error) == UNKNOWN_XID:
                return "aborted"
            self._watch.tried(answered=False)
            return "in progress"
        self._watch.tried(answered=True)
        return answer

    def _answer(self, connection: Any) -> str | None:
        if self._note.server:
            server = identify_server(connection)
            if server is None:  # it will be promoted, or another one will be there
                connection.close()
                return "in progress"
            if server != self._note.server:
                return None  # another cluster, or a standby that has given the id itself
        with connection.cursor() as cursor:
            answer: str | None = _row(cursor, "SELECT pg_xact_status(%s::text::xid8)", str(self._note.xid))[0]
            if answer == "aborted":
                return answer  # it left nothing, whosever id it is
            crashed, now = _row(cursor, WAS_RESET, self._note.moment) or (False, 0)
            if not crashed:
                self._sound_until = max(now, self._sound_until)
                return answer
            recovered = _row(cursor, RECOVERED, self._note.xid)
        if recovered is None:
            return None
        return "aborted" if not recovered[0] else answer if self._was_watching(now) else None

    def _was_watching(self, now: int) -> bool:
        """Whether there was no time for a second crash, by whose recovery others had the same id."""
        began = now - (time.monotonic() - self._watch.since) * 1_000_000
        return began - self._sound_until <= self._watch.unwatched * 1_000_000


def _row(cursor: Any, query: str, parameter: object) -> Any:
    cursor.execute(query, [parameter])
    return cursor.fetchone()
