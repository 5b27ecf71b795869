"""Sends the statements of write-behind itself, through Django's cursors, so that logs of queries show them."""

from __future__ import annotations

from threading import get_ident
from typing import Any


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
