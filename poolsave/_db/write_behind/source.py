"""What write-behind knows of a connection for longer than one transaction."""

from __future__ import annotations

from typing import Any

from .catalog import Catalog
from .channel import Channel, ForeignKeyPlans, KeyBlocks
from .inserts import InsertPlans
from .statements import Statement, understand
from .updates import UpdatePlans

MAX_KNOWN_STATEMENTS = 1000
"""Texts of statements that are remembered with what they do."""


class Source:
    """Tables, plans, keys and statements of one connection."""

    def __init__(self, channel: Channel, settings: str, refused: set[str], unsteady: set[str]) -> None:
        """`refused` are the tables whose UPDATEs do not wait, and `unsteady` the texts of SELECTs that are sent each
        time."""
        self.channel = channel
        self.refused, self.unsteady = refused, unsteady
        self.raw = channel.connection.connection
        self.catalog = Catalog(channel, settings)
        self.inserts = InsertPlans(self.catalog, channel.connection)
        self.updates = UpdatePlans(self.catalog, refused, channel.connection)
        self.keys = KeyBlocks(channel)
        self.foreign_keys = ForeignKeyPlans()
        self._statements: dict[str, Statement] = {}
        self.is_valid = True
        """False once a statement may have changed the schema or the session's settings."""

    def holds_for(self, connection: Any) -> bool:
        """Whether all this is still true, unless the settings have changed past the buffers, which is found out as
        rows are sent."""
        return self.is_valid and self.raw is connection.connection

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
