"""Straight through the objects of a chunk, for functions that manage their own transactions: an object may take less
than a microsecond, so that nothing is done for each that can be done for many."""

from __future__ import annotations

import time
import traceback
from array import array
from collections.abc import Callable, Sequence
from itertools import islice
from operator import length_hint
from typing import Any

from .._pickling.plain import IMMUTABLE_TYPES
from .._pickling.values import to_wire
from .._runtime.foreign_exceptions import traceback_of
from .._runtime.forks import end_child, fork_flag
from ..executors.marks import COMMITTED, RUNNING
from ..executors.protocol import Marks
from .replies import ReplyBuilder

CHECK_INTERVAL = 0.001
"""Seconds between looks at whether an answer is due, or no further object is to be begun, and how brisk objects are."""
FIRST_CHECK = 0.00005
"""Seconds until the first of these looks, which finds tiny objects."""
TINY = 0.000001
"""Seconds; where objects take less, a look at the clock after each of them would take a good part of their time."""
CALLS_PER_CHECK = 8
"""How many of those are run between two looks at the clock. Not more, since one of them may be slow after all, and then
nobody looks whether to stop until the others have run, too."""


class FastLoop:
    """One chunk, run like this."""

    def __init__(
        self, call: Callable[[Any], Any], marks: Marks, collector: ReplyBuilder, reply: Callable[[Any, bool], None]
    ) -> None:
        self._call = call
        self._marks = marks
        self._collector = collector
        self._reply = reply
        self._values: list[Any] = []
        self._answered = 0
        self._plain = True
        self._tiny = False
        self._forked = fork_flag()

    def run(self, objects: Sequence[Any]) -> int:
        """Run the objects, with a reply now and then. Gives how many were begun, which are all answered for; if that
        is all of them, the last reply was final."""
        self._ends = self._marks.stamps(len(objects), begun=RUNNING, ended=COMMITTED)
        self._items = iter(objects)
        place, size = 0, len(objects)
        while place < size and not self._marks.halted:
            place, error = self._run_many(place, size) if self._tiny else self._run_on(place)
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
        call, append, ends, forked = self._call, self._values.append, self._ends, self._forked
        clock, plain, crosses = time.perf_counter, IMMUTABLE_TYPES, self._collector.crosses
        first, began = place, clock()
        now, glance = began, began + (CHECK_INTERVAL if place else FIRST_CHECK)
        try:
            for item in self._items:
                value = call(item)
                if forked:
                    end_child()
                if crosses and type(value) not in plain:
                    value = self._seal(value)  # at once: the function may go on changing it
                append(value)
                ends[place] = now = clock()
                place += 1
                if now > glance:
                    break
        except BaseException as error:  # whatever a user's function raises is that object's failure
            if forked:
                end_child(error)
            return place, error
        self._note_pace(now - began, place - first)
        return place, None

    def _run_many(self, place: int, size: int) -> tuple[int, BaseException | None]:
        """The same, where the last of many objects is told to have taken the time of all of them."""
        call, append, ends, forked = self._call, self._values.append, self._ends, self._forked
        clock, plain, crosses = time.perf_counter, IMMUTABLE_TYPES, self._collector.crosses
        first, began = place, clock()
        now, glance = began, began + CHECK_INTERVAL
        try:
            while place < size and now <= glance:
                for item in islice(self._items, CALLS_PER_CHECK):
                    value = call(item)
                    if forked:
                        end_child()
                    if crosses and type(value) not in plain:
                        value = self._seal(value)
                    append(value)
                    ends[place] = now
                    place += 1
                ends[place - 1] = now = clock()
        except BaseException as error:  # as above
            if forked:
                end_child(error)
            return place, error
        self._note_pace(now - began, place - first)
        return place, None

    def _seal(self, value: Any) -> Any:
        self._plain = False
        return to_wire(value)

    def _note_pace(self, took: float, count: int) -> None:
        self._tiny = took < TINY * count
        self._collector.longest = max(self._collector.longest, took)

    def _answer(self, place: int, *, final: bool) -> None:
        self._reply(self._collector.add_brisk(self._values, self._unanswered(place), None, plain=self._plain), final)
        self._values, self._answered, self._plain = [], place, True
        self._collector.resume()

    def _unanswered(self, place: int) -> array[float]:
        # By their bytes, since an array that is made from a memoryview makes an object of every number on the way.
        ends = array("d")
        ends.frombytes(memoryview(self._ends)[self._answered : place].cast("B"))
        return ends

    def _fail(self, place: int, error: BaseException, *, final: bool) -> None:
        if not self._collector.crosses:
            # The frames' locals would keep objects and cursors alive for as long as the report lives.
            traceback.clear_frames(traceback_of(error))
        now = time.perf_counter()
        self._collector.longest = max(self._collector.longest, now - self._collector.since)
        ends = self._unanswered(place)
        ends.append(now)
        # Told before it gets its time: if the worker died in between, the object would pass for one that returned.
        self._reply(self._collector.add_brisk([*self._values, None], ends, error, plain=self._plain), final)
        self._ends[place] = now
        self._values, self._answered, self._plain = [], place + 1, True
        self._tiny = False  # a failure takes its time, and who looks at the clock no more would not see what follows
        self._collector.resume()
