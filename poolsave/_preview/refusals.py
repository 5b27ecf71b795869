"""What a dry run must not let happen, since a rollback does not undo it.

A function may catch the error of a refusal. It stays noted, no further sample begins, and the dry run raises it.
"""

from __future__ import annotations

from typing import Any, NoReturn

from .._db.transaction_guard import TransactionGuard
from ..errors import InvalidOperation


class Refusals:
    """What was refused in the samples so far."""

    def __init__(self, guards: list[TransactionGuard]) -> None:
        self._guards = guards
        self._first: InvalidOperation | None = None

    def refuse(self, why: str) -> NoReturn:
        """Refuse now.

        Raises:
            InvalidOperation: saying why.
        """
        error = InvalidOperation(why)
        self._first = self._first or error
        raise error

    def note_end(self, what: str, alias: str) -> None:
        """Note that a sample has tried to end its transaction, which is refused elsewhere."""
        self._first = self._first or InvalidOperation(
            f"the function ends the transaction on {alias!r} by itself ({what}), which a dry run could not undo: leave "
            "that to poolsave, which commits after each object"
        )

    def raise_first(self) -> None:
        """Raise what was refused first, if anything was.

        Raises:
            InvalidOperation: saying why.
        """
        for guard in self._guards:
            self._check(guard)
        if self._first is not None:
            raise self._first

    def _check(self, guard: TransactionGuard) -> None:
        alias: Any = guard.connection.alias
        if guard.has_ended():
            raise InvalidOperation(
                f"the function has ended the transaction on {alias!r} past Django, so that what it wrote before may be "
                "in the database: leave that to poolsave, which commits after each object"
            )
        if guard.refused is not None:
            self.note_end(guard.refused, alias)
