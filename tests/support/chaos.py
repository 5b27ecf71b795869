"""Schedules of kills, the process that carries them out, and the audit that holds a report against the database."""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import NamedTuple

from django.db.models import Count, Q
from hypothesis import strategies as st

from poolsave import Status
from tests.models import Person


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What is run, and what befalls it."""

    mode: str
    workers: int
    chunksize: int
    retries: int
    resolve_lost: bool | None
    objects: int
    """At least so many; more are fed until the last blow has fallen, so that every blow hits a run."""
    blows: list
    """Milliseconds to wait, "kill" (a worker), "end" (a server session) or "both", and which of those there are."""

    @property
    def options(self):
        chosen = asdict(self)
        return {name: chosen[name] for name in ("workers", "chunksize", "retries", "resolve_lost")} | {
            "transaction": "chunk" if self.mode == "batched" else self.mode, "batch_writes": self.mode == "batched",
            "start_method": "fork",
        }  # fmt: skip

    @property
    def is_settled(self):
        """Whether PostgreSQL is asked about what would be lost."""
        return self.mode != "object" if self.resolve_lost is None else self.resolve_lost


# Short pauses hit workers that have hardly started, longer ones those that are warm.
pauses = st.integers(0, 50)
choices = st.integers(0, 7)


def schedules(mode, *, kills, ends, resolve_lost=None):
    """Schedules with at least so many kills and so many ended sessions, and up to twice as many."""
    killing = st.tuples(pauses, st.sampled_from(["kill", "both"] if ends else ["kill"]), choices)
    ending = st.tuples(pauses, st.just("end"), choices)
    blows = st.tuples(
        st.lists(killing, min_size=kills, max_size=2 * kills), st.lists(ending, min_size=ends, max_size=2 * ends)
    )
    return st.builds(
        Schedule,
        mode=st.just(mode),
        workers=st.integers(2, 4),
        chunksize=st.integers(1, 20),
        retries=st.integers(0, 4),
        resolve_lost=st.sampled_from([None, False, True]) if resolve_lost is None else st.just(resolve_lost),
        objects=st.integers(200, 500),
        blows=blows.flatmap(lambda pair: st.permutations(pair[0] + pair[1])),
    )


@contextmanager
def killer(schedule, alias, signed):
    """Carry out the blows on this process's workers; gives the process that does it, which ends with the last one."""
    orders = {"parent": os.getpid(), "alias": alias, "signed": str(signed), "blows": schedule.blows}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.killer", json.dumps(orders)], stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.stdout.close()
        process.wait(30)


def names_until(over, least):
    """Names without end, until it is over."""
    for number in itertools.count():
        if number >= least and over():
            return
        yield f"p{number}"


class End(NamedTuple):
    """What the report says of an object."""

    name: str
    status: str


class Found(NamedTuple):
    """What SQL says: how many rows of each kind there are by name."""

    rows: dict
    audit_rows: dict
    m2m_rows: dict


def found_in(alias):
    """Ask in one statement, which sees one moment: a worker that has lost its pool may still be committing."""
    people = Person.objects.using(alias).annotate(
        badges=Count("badge", distinct=True), memberships=Count("tags", filter=Q(tags__name="member"), distinct=True)
    )
    found = Found(Counter(), Counter(), Counter())
    for name, *counts in people.values_list("name", "badges", "memberships"):
        for kind, count in zip(found, (1, *counts), strict=True):
            kind[name] += count
    return found


def audit(ends, found, *, signed):
    """Hold the report against the database; gives its counts by status.

    `signed` has the names of the objects whose function came to its end: only those can have been committing.
    """
    kinds = [Counter(kind) for kind in found]
    for end in ends:
        counts = [kind.pop(end.name, 0) for kind in kinds]
        if end.status == Status.SUCCEEDED:
            assert counts == [1, 1, 1], end
        elif end.status == Status.LOST:
            assert counts in ([0, 0, 0], [1, 1, 1]), end
            assert end.name in signed, end
        else:
            assert counts == [0, 0, 0], end
    assert not any(kinds), f"rows that no outcome accounts for: {kinds}"
    return Counter(end.status for end in ends)


def names_signed(path):
    """The names in the file in which `saves_and_signs` notes who has come to its end."""
    return {line.split()[1] for line in lines_of(path)}


def lines_of(path):
    return path.read_text().splitlines() if path.exists() else []
