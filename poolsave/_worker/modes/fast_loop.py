"""The loop over a chunk for functions that manage their own transactions (`transaction=None`).

An object may take less than a microsecond, so work that can be shared is done once for many objects. `WorkerSession`
takes the other loop if there is a time-out, a context, or a queryset.
"""

from __future__ import annotations

import time
import traceback
from array import array
from collections.abc import Callable, Sequence
from operator import length_hint
from typing import Any

from ..._db.transactions import attempt_of
from ..._pickling.plain import IMMUTABLE_TYPES
from ..._pickling.values import to_wire
from ..._runtime import forks
from ..._runtime.foreign_exceptions import traceback_of
from ..._runtime.forks import end_child
from ...executors.marks import COMMITTED, RUNNING
from ...executors.protocol import Marks
from ..replies import ReplyBuilder

CHECK_INTERVAL = 0.001
"""Seconds between checks whether a reply is due, and whether the run is halted."""


class FastLoop:
    """Runs one chunk."""

    def __init__(
        self,
        call: Callable[[Any], Any],
        marks: Marks,
        builder: ReplyBuilder,
        reply: Callable[[Any, bool], None],
        ends_run: Callable[[BaseException], bool] = lambda _error: False,
    ) -> None:
        """`ends_run`: whether no object is to be begun after this failure."""
        self._call = call
        self._ends_run = ends_run
        self._ended = False
        self._marks = marks
        self._builder = builder
        self._reply = reply
        self._values: list[Any] = []
        self._sent = 0
        self._all_plain = True
        self._forked = forks.flag

    def run(self, objects: Sequence[Any]) -> int:
        """Run the objects, and send replies for them. Returns how many were started; all of these have a reply.

        If all objects were started, the last reply was final."""
        self._ends = self._marks.stamps(len(objects), begun=RUNNING, ended=COMMITTED)
        self._items = iter(objects)
        index, size = 0, len(objects)
        while index < size and not (self._ended or self._marks.halted):
            index, error = self._run_until_check(index)
            if error is not None:
                if index == size:  # from a signal handler, after the last object
                    raise error
                del self._values[index - self._sent :]
                self._fail(index, error, final=index + 1 == size)
                index += 1
                if length_hint(self._items) != size - index:
                    # A signal handler has raised before the iterator gave the object.
                    self._items = iter(objects[index:])
            elif index < size and self._builder.due(time.perf_counter()):
                self._send_reply(index, final=False)
        if self._values:
            self._send_reply(index, final=index == size)
        return index

    def _run_until_check(self, index: int) -> tuple[int, BaseException | None]:
        """Run until an object fails, or a check is due. Returns the index after the last object that returned."""
        call, append, ends, forked = self._call, self._values.append, self._ends, self._forked
        clock, plain, crosses = time.perf_counter, IMMUTABLE_TYPES, self._builder.crosses
        started = now = clock()
        next_check = started + CHECK_INTERVAL
        try:
            for item in self._items:
                value = call(item)
                if forked:
                    end_child()
                if crosses and type(value) not in plain:
                    value = self._to_wire(value)  # at once: the function may change it later
                append(value)
                # After the value: with its time an object counts as returned, in the parent's eyes, too.
                ends[index] = now = clock()
                index += 1
                if now > next_check:
                    break
        except BaseException as error:  # whatever a user's function raises is that object's failure
            if forked:
                end_child(error)
            return index, error
        self._builder.longest = max(self._builder.longest, now - started)
        return index, None

    def _to_wire(self, value: Any) -> Any:
        self._all_plain = False
        return to_wire(value)

    def _send_reply(self, index: int, *, final: bool) -> None:
        self._reply(self._builder.add_fast(self._values, self._unsent_times(index), None, plain=self._all_plain), final)
        self._values, self._sent, self._all_plain = [], index, True
        self._builder.resume()

    def _unsent_times(self, index: int) -> array[float]:
        # As bytes: array("d", memoryview) would make a Python object of each number.
        ends = array("d")
        ends.frombytes(memoryview(self._ends)[self._sent : index].cast("B"))
        return ends

    def _fail(self, index: int, error: BaseException, *, final: bool) -> None:
        self._ended = self._ends_run(error)
        if not self._builder.crosses:
            # The frames' locals would keep objects and cursors alive for as long as the report lives.
            traceback.clear_frames(traceback_of(error))
        now = time.perf_counter()
        self._builder.longest = max(self._builder.longest, now - self._builder.since)
        ends = self._unsent_times(index)
        ends.append(now)
        # Reply before the end time is set: if the worker died in between, the object would count as returned.
        last = attempt_of(error)
        plain = self._all_plain and last.value is None
        self._reply(self._builder.add_fast([*self._values, last.value], ends, last, plain=plain), final)
        self._ends[index] = now
        self._values, self._sent, self._all_plain = [], index + 1, True
        self._builder.resume()
