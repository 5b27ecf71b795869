"""What write-behind itself asks of the server: through Django's cursors, so that logs of queries show it.

The most frequent question is for primary keys, which are drawn from the tables' own sequences before the rows are sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from threading import get_ident
from typing import Any

from .fields import as_sql

FIRST_BLOCK = 100
"""Keys that are drawn first. Each further block is twice as large, up to `LARGEST_BLOCK`."""
LARGEST_BLOCK = 500
"""Keys in a block, unless more rows go together. What a worker has left at its end are gaps."""


class Channel:
    """One connection. What is sent here is no statement of the function's, so that guards and buffers let it pass."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._senders = set[int]()
        """The threads that are sending."""

    @property
    def is_sending(self) -> bool:
        """Whether what this thread sends now is no statement of the function's."""
        return get_ident() in self._senders

    def send(self, text: str, values: Any = None) -> list[Any]:
        """Send it, and give the rows that come back, of several statements those of the last one."""
        self._senders.add(get_ident())
        # A thread of the function's may send past Django, which lets no other thread than its own use the wrapper.
        self.connection.inc_thread_sharing()
        try:
            with self.connection.cursor() as cursor:
                cursor.execute(text, values)
                # psycopg2 knows the last result alone, and psycopg 3 begins with the first one.
                while hasattr(self.connection.connection, "pgconn") and cursor.nextset():
                    pass
                return cursor.fetchall() if cursor.description else []
        finally:
            self.connection.dec_thread_sharing()
            self._senders.discard(get_ident())


FEW_ROWS = 100
"""Rows that a connection has sent when its first plans count as made."""
GROWTH = 1.5
"""Factor by which a connection's rows have grown when its plans are made anew. Planning takes as long as a few rows."""


class ForeignKeyPlans:
    """Has the server plan its checks of foreign keys anew while tables grow.

    A session keeps the plan by which it checks a foreign key. One that it made when the table had a few rows reads all
    of the table for each new row, and goes on with that when there are a million.
    """

    def __init__(self) -> None:
        self._sent = 0
        self._planned_at = FEW_ROWS
        """Rows that had been sent when the plans were made."""

    def before(self, rows: int) -> str | None:
        """Give a statement that drops the session's plans, if it has sent many more rows than when they were made, or
        None."""
        is_due = self._sent >= GROWTH * self._planned_at
        if is_due:
            self._planned_at = self._sent
        self._sent += rows
        return "DISCARD PLANS" if is_due else None


class KeyBlocks:
    """Blocks of keys of one connection. They outlive transactions: a sequence is never rolled back.

    A function waits for a block only if there is none yet. Others are drawn as rows are sent, in the same round trip.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._blocks: dict[str, deque[int]] = {}
        self._sizes: dict[str, int] = {}

    def next_key(self, sequence: str) -> int:
        """Give the next key; a query draws a block if there is none left."""
        block = self._blocks.get(sequence)
        if not block:
            self._refill(sequence)
            block = self._blocks[sequence]
        return block.popleft()

    def forget(self) -> None:
        """Drop all keys: the sequences may have been set back."""
        self._blocks.clear()

    def draw(self, wanted: Mapping[str, int]) -> str | None:
        """Give a query that draws blocks of the sequences that have fewer keys left than are wanted, or None.

        What it returns is for `add`.
        """
        sizes = [
            (name, max(count, self._next_size(name)))
            for name, count in wanted.items()
            if len(self._blocks.get(name, ())) < count
        ]
        return " UNION ALL ".join([DRAW.format(*map(as_sql, pair)) for pair in sizes]) or None

    def add(self, rows: Iterable[tuple[str, None, str]]) -> None:
        """Add the keys that were drawn."""
        for name, _, keys in rows:
            self._blocks.setdefault(name, deque()).extend(map(int, keys.split()))

    def _refill(self, sequence: str) -> None:
        # With it those that are nearly empty, in the same round trip.
        low = [name for name, block in self._blocks.items() if len(block) < FIRST_BLOCK]
        self.add(self._channel.send(self.draw(dict.fromkeys([sequence, *low], FIRST_BLOCK)) or ""))

    def _next_size(self, sequence: str) -> int:
        size = self._sizes.get(sequence, FIRST_BLOCK)
        self._sizes[sequence] = min(2 * size, LARGEST_BLOCK)
        return size


DRAW = "SELECT {0}, NULL::bigint, string_agg(nextval({0}::regclass)::text, ' ') FROM generate_series(1, {1})"
"""In one row, since drivers take longer to read many."""
