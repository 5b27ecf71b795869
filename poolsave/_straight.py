"""Straight through the objects of a chunk, for functions that manage their own transactions: an object may take less
than a microsecond, so that nothing is done for each that can be done for many."""

from __future__ import annotations

import time
import traceback
from array import array
from collections.abc import Callable, Sequence
from operator import length_hint
from typing import Any

from ._envelopes import seal_surely
from ._plain import PLAIN
from ._replies import Collector
from ._transactions import COMMITTED, RUNNING
from .executors.protocol import Marks

__all__ = ["StraightRun"]

GLANCE = 0.001
"""Seconds between looks at whether an answer is due, or no further object is to be begun."""


class StraightRun:
    """One chunk, run like this."""

    def __init__(
        self, call: Callable[[Any], Any], marks: Marks, collector: Collector, reply: Callable[[Any, bool], None]
    ) -> None:
        self._call = call
        self._marks = marks
        self._collector = collector
        self._reply = reply
        self._values: list[Any] = []
        self._answered = 0

    def run(self, objects: Sequence[Any]) -> int:
        """Run the objects, with a reply now and then. Gives how many were begun, which are all answered for; if that
        is all of them, the last reply was final."""
        self._ends = self._marks.stamps(len(objects), begun=RUNNING, ended=COMMITTED)
        self._items = iter(objects)
        place, size = 0, len(objects)
        while place < size and not self._marks.halted:
            place, error = self._run_on(place)
            if error is not None:
                if place == size:  # of a signal's handler, when all had returned
                    raise error
                del self._values[place - self._answered :]
                self._fail(place, error, final=place + 1 == size)
                place += 1
                if length_hint(self._items) != size - place:
                    # An exception that a signal's handler raised has come before the object was taken.
                    self._items = iter(objects[place:])
            elif place < size and self._collector.due(time.perf_counter()):
                self._answer(place, final=False)
        if self._values:
            self._answer(place, final=place == size)
        return place

    def _run_on(self, place: int) -> tuple[int, BaseException | None]:
        """Run until one fails, which is at the place that is given back, or it is time for a glance."""
        call, append, ends = self._call, self._values.append, self._ends
        clock, plain, crosses = time.perf_counter, PLAIN, self._collector.crosses
        began = now = clock()
        glance = began + GLANCE
        try:
            for item in self._items:
                value = call(item)
                if crosses and type(value) not in plain:
                    value = seal_surely(value)  # at once: the function may go on changing it
                append(value)
                ends[place] = now = clock()
                place += 1
                if now > glance:
                    break
        except BaseException as error:  # whatever a user's function raises is that object's failure
            return place, error
        self._collector.longest = max(self._collector.longest, now - began)
        return place, None

    def _answer(self, place: int, *, final: bool) -> None:
        ends = array("d", self._ends[self._answered : place])
        self._reply(self._collector.add_brisk(self._values, ends, None), final)
        self._values, self._answered = [], place
        self._collector.resume()

    def _fail(self, place: int, error: BaseException, *, final: bool) -> None:
        if not self._collector.crosses:
            # The frames' locals would keep objects and cursors alive for as long as the report lives.
            traceback.clear_frames(error.__traceback__)
        now = time.perf_counter()
        self._collector.longest = max(self._collector.longest, now - self._collector.since)
        ends = array("d", [*self._ends[self._answered : place], now])
        # Told before it gets its time: if the worker died in between, the object would pass for one that returned.
        self._reply(self._collector.add_brisk([*self._values, None], ends, error), final)
        self._ends[place] = now
        self._values, self._answered = [], place + 1
        self._collector.resume()
