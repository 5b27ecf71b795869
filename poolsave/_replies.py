"""A worker's answer for some objects of a chunk that stand side by side, in columns, since most of it is dull."""

from __future__ import annotations

import pickle
import time
from array import array
from typing import Any, NamedTuple

from ._envelopes import ErrorRecord, format_traceback, join, pack_error, split, unpack_error, unseal
from ._transactions import Attempt
from .outcomes import Status

__all__ = ["Collector", "Reply", "Trouble"]

LINGER = 0.02
"""Seconds that an answer may wait in the worker for company: a message costs about 0.01 ms on either side, and what
waits is lost if the worker is killed (the object's status is not: that is in the shared block)."""


class Trouble(NamedTuple):
    """All that is to be said of an object that did not simply succeed at the first attempt."""

    status: Status
    error: BaseException | ErrorRecord | None
    traceback: str | None
    attempts: int
    unreadable: bool = False
    """The value could not be restored in the caller's process."""
    note: int = 0
    """For what was lost: the transaction's id, if it was noted."""


class Reply(NamedTuple):
    """`values[i]` and `seconds[i]` belong to the object at `offset + i` of its chunk, `troubles[i]` too if present."""

    offset: int
    values: list[Any]
    seconds: array[float]
    troubles: dict[int, Trouble]
    worker: int | str

    def to_bytes(self) -> bytes:
        """Pickle it; every value was sealed and every error is a record, so this cannot fail."""
        values, sealed = split(self.values)
        return pickle.dumps(
            (self.offset, values, sealed, self.seconds.tobytes(), self.troubles, self.worker), pickle.HIGHEST_PROTOCOL
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Reply:
        """Undo `to_bytes`; values that cannot be restored here become trouble of their own objects."""
        offset, values, sealed, seconds, troubles, worker = pickle.loads(data)
        column = join(values, sealed)
        for place in sealed:
            try:
                column[place] = unseal(column[place])
            except Exception as error:  # the object's own unpickling; the object is saved all the same
                column[place] = None
                troubles[place] = Trouble(Status.SUCCEEDED, error, format_traceback(error), 1, unreadable=True)
        for place, trouble in troubles.items():
            if isinstance(trouble.error, ErrorRecord):
                troubles[place] = trouble._replace(error=unpack_error(trouble.error))
        return cls(offset, column, array("d", seconds), troubles, worker)


class Collector:
    """Gathers what the objects of one chunk came to, until it is time to send a reply."""

    def __init__(self, worker: int | str, *, crosses: bool) -> None:
        self._worker = worker
        self._crosses = crosses
        self._begin(0)

    def _begin(self, offset: int) -> None:
        self._offset = offset
        self._values: list[Any] = []
        self._seconds: array[float] = array("d")
        self._troubles: dict[int, Trouble] = {}
        self._since = time.perf_counter()

    def add(self, attempt: Attempt, attempts: int, seconds: float) -> None:
        """Take the next object's end."""
        if attempt.error is not None or attempts != 1 or attempt.status is not Status.SUCCEEDED:
            self._troubles[len(self._values)] = self._trouble(attempt, attempts)
        self._values.append(attempt.value)
        self._seconds.append(seconds)

    def _trouble(self, attempt: Attempt, attempts: int) -> Trouble:
        error = attempt.error
        if error is None:
            return Trouble(attempt.status, None, None, attempts)
        text = format_traceback(error)
        told = pack_error(error) if self._crosses else error
        return Trouble(attempt.status, told, text, attempts, note=attempt.note)

    def due(self, now: float) -> bool:
        """Whether what was gathered should wait no longer: failures never wait."""
        return bool(self._troubles) or now - self._since > LINGER

    def take(self) -> Any:
        """Give the reply, as bytes if it has to cross, and begin the next one."""
        reply = Reply(self._offset, self._values, self._seconds, self._troubles, self._worker)
        self._begin(self._offset + len(self._values))
        return reply.to_bytes() if self._crosses else reply
