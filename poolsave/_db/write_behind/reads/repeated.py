"""Answers a SELECT that an earlier object of the chunk has sent, such as `Group.objects.get(name="customers")`.

    an object's SELECT           -> server, and its answer is kept
    the same, by the next object -> that answer
    a change of its tables, and before the COMMIT: a SELECT whose answer was used -> server; another answer -> undo

Other sessions may commit at any time. So an answer that was used counts only if the server gives it once more later:
nothing that it depends on has changed in between. An object that asks twice may wait for a change, so the second time
the server is asked.
"""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from django.db.models.sql.constants import MULTI

from ..channel import Channel
from ..fields import MAX_CHARACTERS

MAX_ROWS = 20
"""Rows of an answer that is kept."""
MAX_ANSWERS = 1000
"""Answers that are kept at a time."""
VALUES = (str, uuid.UUID, dt.date, type(None))
"""Types of parameters of which those that are equal are sent alike. So are integers, for which Django has types of
psycopg 3's own."""
CELLS = frozenset((*VALUES, int, bool, float, decimal.Decimal, dt.datetime, dt.time, dt.timedelta, bytes))
"""Types of what is in a row; others could be changed by whoever gets it."""


class Question(NamedTuple):
    """A SELECT that Django has compiled."""

    text: str
    values: tuple[Any, ...]
    types: tuple[type, ...]
    """Of the values: 1 equals True."""
    result_type: str
    """Whether all rows are asked for or the first one, as Django has it."""


def question_of(text: str, values: Sequence[Any], result_type: str) -> Question | None:
    """Give the question, or None if its answer is not kept."""
    types = tuple(map(type, values))
    if not all(kind in VALUES or issubclass(kind, int) for kind in types):
        return None
    return Question(text, tuple(values), types, result_type)


@dataclass(slots=True)
class _Answer:
    result: Any
    """What Django's compiler gives."""
    rows: list[tuple[Any, ...]]
    tables: frozenset[str]
    asked_by: int
    """The number of the object that has got it last."""
    is_used: bool = False
    """Whether it was given to an object without the server's having been asked since."""


class RepeatedReads:
    """The answers of one connection's transaction."""

    def __init__(self, channel: Channel, undo: Callable[[str], NoReturn]) -> None:
        """`undo` gives up on the transaction, for the reason that it is told."""
        self._channel, self._undo = channel, undo
        self._answers: dict[Question, _Answer] = {}
        self._tables: set[str] = set()
        """Those that the answers depend on, and perhaps some more."""
        self.object: int | None = None
        """The number of the object that runs, or None if its SELECTs are all sent."""
        self.spared = 0
        """How many SELECTs were not sent."""

    @property
    def has_used(self) -> bool:
        """Whether there are answers that the server has to give once more."""
        return any(answer.is_used for answer in self._answers.values())

    def find(self, question: Question) -> Any:
        """Give what Django's compiler gave to an earlier object, in a tuple; empty if the server has to be asked."""
        answer = self._answers.get(question)
        if answer is None or self.object in (None, answer.asked_by):
            return ()
        answer.asked_by, answer.is_used = self.object, True
        self.spared += 1
        return (answer.result,)

    def keep(self, question: Question, tables: frozenset[str], result: Any) -> None:
        """Keep what the compiler has given."""
        if self.object is None:
            return
        rows = _rows_of(question, result)
        if len(rows) > MAX_ROWS or not all(_can_be_kept(cell) for row in rows for cell in row):
            return
        before = self._answers.get(question)
        if before is not None and before.is_used and before.rows != rows:
            self._has_changed(question)
        if len(self._answers) >= MAX_ANSWERS:
            self.forget()
        self._answers[question] = _Answer(result, rows, tables, self.object)
        self._tables |= tables

    def forget(self, tables: Collection[str] | None = None) -> None:
        """Check and forget the answers that depend on these tables, or all, before rows of theirs change."""
        if self._answers and (tables is None or not self._tables.isdisjoint(tables)):
            kept = {} if tables is None else {q: a for q, a in self._answers.items() if a.tables.isdisjoint(tables)}
            self.check([question for question in self._answers if question not in kept])
            self._answers = kept
            self._tables = set[str]().union(*(answer.tables for answer in kept.values()))

    def check(self, questions: Collection[Question] | None = None) -> None:
        """Ask the server once more for those answers that were used, and undo the transaction if one is another now."""
        for question in self._answers if questions is None else questions:
            answer = self._answers[question]
            if answer.is_used:
                rows = self._channel.send(question.text, question.values)
                if answer.rows != (rows if question.result_type == MULTI else rows[:1]):
                    self._has_changed(question)
                answer.is_used = False

    def _has_changed(self, question: Question) -> NoReturn:
        self._undo(f"another session has changed what a chunk had read: {question.text}")


def _rows_of(question: Question, result: Any) -> list[tuple[Any, ...]]:
    if question.result_type == MULTI:
        return [row for rows in result for row in rows]
    return [] if result is None else [result]


def _can_be_kept(cell: Any) -> bool:
    if type(cell) in (str, bytes):
        return len(cell) <= MAX_CHARACTERS
    return type(cell) in CELLS and bool(cell == cell)  # noqa: PLR0124  NaN could not be compared later
