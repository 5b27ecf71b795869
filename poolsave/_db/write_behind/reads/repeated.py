"""Answers a SELECT that an earlier object of the chunk has sent, such as `Group.objects.get(name="customers")`.

    an object's SELECT           -> server, and its answer is kept
    the same, by the next object -> that answer
    a change of its tables, and before the COMMIT: a SELECT whose answer was used -> server; another answer -> undo

Other sessions may commit at any time. So an answer that was used counts only if the server gives it once more later. A
change that was taken back in between is not noticed. An object that asks twice may wait for a change, so the second
time the server is asked.
"""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from collections import defaultdict
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
"""Types of what is in a row. Values of others could be changed by the function that gets them."""


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
class Answer:
    """What the server has answered."""

    result: Any
    """What Django's compiler gives."""
    rows: list[tuple[Any, ...]]
    asked_by: int
    """The number of the object that has got it last."""
    is_used: bool = False
    """Whether it was given to an object without the server's having been asked since."""


class RepeatedReads:
    """The answers of one connection's transaction."""

    def __init__(self, channel: Channel, unsteady: set[str], undo: Callable[[str, Exception | None], NoReturn]) -> None:
        """Do not keep answers to texts in `unsteady`, which may grow. `undo` gives up on the transaction, with a reason
        and the error that has led to it."""
        self._channel, self._unsteady, self._undo = channel, unsteady, undo
        self._answers: dict[Question, Answer] = {}
        self._by_table = defaultdict[str, list[Question]](list)
        self.object: int | None = None
        """The number of the object that runs, or None if its SELECTs are all sent."""
        self.spared = 0
        """How many SELECTs were not sent, less those that were sent once more."""

    @property
    def has_used(self) -> bool:
        """Whether there are answers that the server has to give once more."""
        return any(answer.is_used for answer in list(self._answers.values()))

    def find(self, question: Question) -> Answer | None:
        """Give what an earlier object got, or None if the server has to be asked."""
        answer = self._answers.get(question)
        if answer is None or self.object is None or self.object == answer.asked_by:
            return None
        answer.asked_by, answer.is_used = self.object, True
        self.spared += 1
        return answer

    def keep(self, question: Question, tables: frozenset[str], result: Any) -> None:
        """Keep what the compiler has given."""
        if self.object is None or question.text in self._unsteady:
            return
        rows = _rows_of(question, result)
        if len(rows) > MAX_ROWS or not all(_can_be_kept(cell) for row in rows for cell in row):
            return
        before = self._answers.get(question)
        if before is not None and before.is_used and before.rows != rows:
            self._has_changed(question)
        if len(self._answers) >= MAX_ANSWERS:
            self.before_change()
        self._answers[question] = Answer(result, rows, self.object)
        for table in tables:
            self._by_table[table].append(question)

    def before_change(self, tables: Collection[str] = ()) -> None:
        """Check the answers that depend on these tables, or without any all of them, and keep them no longer."""
        if not self._answers:
            return
        if tables:
            questions = [question for table in tables for question in self._by_table.get(table, ())]
        else:
            questions = [*self._answers]
        self._check(questions)
        for question in questions:
            self._answers.pop(question, None)
        for table in tables or [*self._by_table]:
            self._by_table.pop(table, None)

    def check(self) -> None:
        """Ask the server once more for the answers that were used, and undo the transaction if one is another now."""
        self._check([*self._answers])

    def drop(self) -> None:
        """Keep no answer any longer, of which none has been used."""
        self._answers.clear()
        self._by_table.clear()

    def _check(self, questions: Collection[Question]) -> None:
        for question in questions:
            answer = self._answers.get(question)
            if answer is not None and answer.is_used:
                if not self._still_holds(question, answer):
                    self._has_changed(question)
                answer.is_used = False
                self.spared -= 1

    def _still_holds(self, question: Question, answer: Answer) -> bool:
        try:
            rows = self._channel.send(question.text, question.values)
        except Exception as error:
            self._undo(f"{type(error).__name__} while a SELECT was sent once more: {question.text}", error)
        return answer.rows == (rows if question.result_type == MULTI else rows[:1])

    def _has_changed(self, question: Question) -> NoReturn:
        self._unsteady.add(question.text)
        self._undo(f"another session has changed what a chunk had read: {question.text}", None)


def _rows_of(question: Question, result: Any) -> list[tuple[Any, ...]]:
    if question.result_type == MULTI:
        return [row for rows in result for row in rows]
    return [] if result is None else [result]


def _can_be_kept(cell: Any) -> bool:
    if type(cell) in (str, bytes):
        return len(cell) <= MAX_CHARACTERS
    return type(cell) in CELLS and bool(cell == cell)  # noqa: PLR0124  NaN could not be compared later
