"""Straight through the objects of a chunk, for functions that manage their own transactions: an object may take no
longer than a microsecond, so that nothing is done for each that can be done for many."""

from __future__ import annotations

import time
import traceback
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from ._envelopes import PLAIN, seal_surely
from ._replies import LINGER, Collector
from ._transactions import COMMITTED, RUNNING
from .executors.protocol import Marks

__all__ = ["run_straight"]

GLANCE = 0.001
"""Seconds between looks at whether an answer is due, or no further object is to be begun."""


def run_straight(
    call: Callable[[Any], Any],
    objects: Sequence[Any],
    marks: Marks,
    collector: Collector,
    reply: Callable[[Any, bool], None],
    *,
    crosses: bool,
) -> int:
    """Run the objects, with a reply now and then. Gives how many were begun, which are all answered for; if that is
    all of them, the last reply was final."""
    if marks.halted:
        return 0
    ends = marks.stamps(len(objects), begun=RUNNING, ended=COMMITTED)
    values: list[Any] = []
    first, place, last = 0, -1, len(objects) - 1
    clock, plain = time.perf_counter, PLAIN
    glance = clock() + GLANCE
    linger = glance + LINGER
    for place, item in enumerate(objects):  # noqa: B007  it is used after the loop
        try:
            value = call(item)
            if crosses and type(value) not in plain:
                value = seal_surely(value)  # at once: the function may go on changing it
        except BaseException as error:  # whatever a user's function raises is that object's failure
            # Told before it gets its time, or a worker that dies here would leave it as one that returned.
            reply(_failed(collector, values, ends[first:place], error, crosses=crosses), place == last)
            ends[place] = clock()
            values, first = [], place + 1
            if marks.halted:
                break
            continue
        values.append(value)
        ends[place] = now = clock()
        if now > glance:
            if now > linger and place < last:
                reply(collector.add_brisk(values, array("d", ends[first : place + 1]), None), False)
                values, first, linger = [], place + 1, now + LINGER
            if marks.halted:
                break
            glance = now + GLANCE
    if values:
        reply(collector.add_brisk(values, array("d", ends[first : place + 1]), None), place == last)
    return place + 1


def _failed(
    collector: Collector, values: list[Any], ends: Sequence[float], error: BaseException, *, crosses: bool
) -> Any:
    if not crosses:
        # The frames' locals would keep objects and cursors alive for as long as the report lives.
        traceback.clear_frames(error.__traceback__)
    return collector.add_brisk([*values, None], array("d", [*ends, time.perf_counter()]), error)
