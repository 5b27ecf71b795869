"""Finds the objects whose rows the server refuses since others have their unique values.

    flush fails by a unique index -> rollback -> new transaction: find_objects() -> the chunk again, in which these
    objects run with savepoints of their own and send their rows at once

Nothing depends on its answer but the time: an object that is named without need runs in the ordinary way, and one that
is missing makes the second flush fail, too. Then the whole chunk runs in the ordinary way.
"""

from __future__ import annotations

from .buffer import Entry
from .channel import Channel
from .fields import Row
from .inserts import InsertPlan

MAX_SHARE = 0.25
"""Of a chunk's objects. With more of them the ordinary way is faster."""


def find_objects(channel: Channel, log: list[Entry]) -> set[int]:
    """Give the numbers of the objects whose INSERTs meet a row that is there, or one that comes before in the log.

    The rows are inserted and taken back. So this waits for other sessions as the INSERTs themselves do.
    """
    groups: dict[InsertPlan, list[tuple[Row, int]]] = {}
    for plan, row, number in log:
        if isinstance(plan, InsertPlan) and not plan.ignores_conflicts:
            groups.setdefault(plan, []).append((row, number))
    channel.send("SAVEPOINT poolsave_sieve")
    found: set[int] = set()
    for plan, rows in groups.items():
        found |= _objects_of(channel, plan, rows)
    channel.send("ROLLBACK TO SAVEPOINT poolsave_sieve; RELEASE SAVEPOINT poolsave_sieve")
    return found


def _objects_of(channel: Channel, plan: InsertPlan, rows: list[tuple[Row, int]]) -> set[int]:
    returned = channel.send(plan.statement_for_new([row for row, _number in rows]))
    new = {key for (key,) in returned}
    return {number for row, number in rows if row[plan.key_index or 0] not in new}
