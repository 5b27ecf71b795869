"""Sends the statements of write-behind itself, through Django's cursors, so that logs of queries show them."""

from __future__ import annotations

from typing import Any


class Channel:
    """One connection. What is sent here is no statement of the function's, so that guards and buffers let it pass."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.is_sending = False

    def send(self, text: str, values: Any = None) -> list[Any]:
        """Send it, and give the rows that come back."""
        self.is_sending = True
        try:
            with self.connection.cursor() as cursor:
                cursor.execute(text, values)
                return cursor.fetchall() if cursor.description else []
        finally:
            self.is_sending = False
