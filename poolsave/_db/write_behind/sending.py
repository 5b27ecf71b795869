"""Sends the rows of a log: all of them, or all but those of objects of which one is there already.

    send_all() fails by a unique index -> rollback to its savepoint -> send_new(): what it does not return is there

A row is there already if it meets one in the table, or one that comes before it in the log. Other rows of its object
are left out, too. If some of these have been sent by then, all are sent once more without them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, TypeAlias

from .channel import Channel
from .fields import Row
from .inserts import InsertPlan
from .updates import UpdatePlan

Entry: TypeAlias = tuple[InsertPlan | UpdatePlan, Row, int]
"""A row, how it is sent, and the number of its object in the chunk."""

_SET = "SAVEPOINT poolsave_rows"
_RELEASE = "RELEASE SAVEPOINT poolsave_rows"
_ROLL_BACK = "ROLLBACK TO SAVEPOINT poolsave_rows"


def send_all(
    channel: Channel,
    log: list[Entry],
    trial: Sequence[Entry] = (),
    *,
    first: Sequence[str | None] = (),
    last: str | None = None,
) -> list[Any]:
    """Send all rows, and then those of the trial, which are taken back. After an error `send_new` can follow.

    The `first` statements go before them, and after them a `last` query, of which the rows are returned.
    """
    texts = [_SET, *first, *_statements(log), _RELEASE, *_on_trial(trial), last]
    rows = channel.send(";\n".join([text for text in texts if text is not None]))
    return rows if last is not None else []


def send_new(channel: Channel, log: list[Entry], trial: Sequence[Entry] = ()) -> set[int]:
    """Send what `send_all` could not. Gives the numbers of the objects whose rows are left out.

    It waits for other sessions as the INSERTs themselves do.
    """
    refused = set[int]()
    while True:
        channel.send(_ROLL_BACK)
        found, sent = _send_groups(channel, [entry for entry in log if entry[2] not in refused])
        refused |= found
        if found.isdisjoint(sent):
            channel.send(";\n".join([_RELEASE, *_on_trial(trial)]))
            return refused


def _send_groups(channel: Channel, log: list[Entry]) -> tuple[set[int], set[int]]:
    """Give the numbers of objects of which a row is there already, and of those of which one has been sent."""
    found, sent = set[int](), set[int]()
    for plan, entries in _grouped(log):
        # Also rows of objects that were found: without them a later row that meets one of these would be sent.
        rows = [row for _plan, row, _number in entries]
        if isinstance(plan, InsertPlan) and not plan.ignores_conflicts:
            are_new = _send_those_that_are_new(channel, plan, rows)
        else:
            channel.send(plan.statement(rows))
            are_new = [True] * len(rows)
        for (_plan, _row, number), is_new in zip(entries, are_new, strict=True):
            (sent if is_new else found).add(number)
    return found, sent


def _send_those_that_are_new(channel: Channel, plan: InsertPlan, rows: list[Row]) -> list[bool]:
    if plan.sequence is None:
        # Keys of the function's own may be equal, or come back in another form. So each row is sent alone.
        return [bool(channel.send(plan.statement_for_new([row]))) for row in rows]
    new = {key for (key,) in channel.send(plan.statement_for_new(rows))}
    return [row[plan.key_index or 0] in new for row in rows]


def _on_trial(log: Sequence[Entry]) -> list[str]:
    if not log:
        return []
    back = ["ROLLBACK TO SAVEPOINT poolsave_trial", "RELEASE SAVEPOINT poolsave_trial"]
    return ["SAVEPOINT poolsave_trial", *_statements(log), *back]


def _statements(log: Sequence[Entry]) -> list[str]:
    return [plan.statement([row for _plan, row, _number in entries]) for plan, entries in _grouped(log)]


def _grouped(log: Sequence[Entry]) -> list[tuple[InsertPlan | UpdatePlan, list[Entry]]]:
    """Group the rows by statements, in an order that gives what the single ones would: the changes of rows that have to
    be there already, then new rows, then their changes. The first change of each row comes before the second."""
    changed = {plan.table for plan, _row, _number in log if isinstance(plan, UpdatePlan)}
    groups: dict[tuple[int, int, InsertPlan | UpdatePlan], list[Entry]] = defaultdict(list)
    new: set[tuple[str, str | None, Any]] = set()
    changes = Counter[tuple[str, str | None, Any]]()
    for entry in log:
        plan, row, _number = entry
        step, change = 1, 0
        if plan.table in changed:
            identity = plan.identity(row)
            if isinstance(plan, UpdatePlan):
                changes[identity] += 1
                step, change = 2 if identity in new else 0, changes[identity]
            else:
                new.add(identity)
        groups[step, change, plan].append(entry)
    return [(plan, rows) for (*_step, plan), rows in sorted(groups.items(), key=lambda group: group[0][:2])]
