"""Operations to make pipelines of, which workers can find by name."""

import os
import signal
import sqlite3
import threading

from django.db import connections, transaction

from poolsave import DROP, pooled_operation
from tests.models import Person
from tests.support.operations import doubles as doubles  # noqa: PLC0414  a stage like the others here
from tests.support.operations import pure, saving

FORK = {"start_method": "fork"}
THREAD = {"executor": "thread"}
SERIAL = {"executor": "serial"}


def sums_up(report):
    ends = report.succeeded + report.failed + report.lost + report.skipped + report.dropped
    return ends == report.total == len(list(report))


def saved_names():
    return sorted(Person.objects.values_list("name", flat=True))


@pure
def drops_threes(number):
    return DROP if number % 3 == 0 else number


@pure
def fails_on_five(number):
    if number % 5 == 0:
        raise LookupError(number)
    return number


@pooled_operation(expand=True, transaction=None, workers=2, progress=False)
def twice(number):
    yield number
    yield -number


@pure
def names(number):
    return f"name {number}"


@pure
def where(trail):
    """Adds the process and the thread."""
    return [*trail, (os.getpid(), threading.current_thread().name)]


@saving
def commits_unseen(name):
    """Saves, commits by a method of the driver that nothing stands in front of, and fails."""
    Person(name=name).save()
    sqlite3.Connection.commit(connections["default"].connection)
    raise LookupError(name)


@pure
def kills_on(number, *, victim):
    if number == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pure
def raises_on(number, *, victim):
    if number == victim:
        raise LookupError(number)
    return number


@pure
def kills_when_saved(key, *, name):
    """Where the stage before has saved a name and given its key."""
    if Person.objects.get(pk=key).name == name:
        os.kill(os.getpid(), signal.SIGKILL)
    return key


@pure
def sleeps_on(number, *, victim):
    while number == victim:
        threading.Event().wait(0.01)
    return number


@saving
def saves_name(name, *, fail=(), kill=None):
    person = Person.objects.create(name=name)
    if name in fail:
        raise ValueError(name)
    if name == kill:
        os.kill(os.getpid(), signal.SIGKILL)
    return person.pk


@saving
def saves_first(number, *, prefix="first"):
    Person.objects.create(name=f"{prefix} {number}")
    return number


@saving
def saves_second(number, *, fail=(), kill=None):
    saves_first(number, prefix="second")
    if number in fail:
        raise ValueError(number)
    if number == kill:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@saving
def complains_after_commit(number):
    transaction.on_commit(lambda: 1 / 0)
    return number


@pure
def inside_transaction(number):
    return number, connections["default"].in_atomic_block


@saving
def saves_inside(told):
    """Whether the stage before and this one are inside a transaction."""
    return told[1], connections["default"].in_atomic_block


@pure
def asks_for_the_lock(name):
    """Whether anybody holds SQLite's write lock."""
    path = connections["default"].settings_dict["NAME"]
    other = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
    finally:
        other.close()
    return name


@pure
def waits_for_file(path):
    """Runs until the file is there; says by another file that it has begun."""
    open(f"{path}.begun", "w").close()
    while not os.path.exists(path):
        threading.Event().wait(0.005)
    return path


@saving
def renames(person):
    person.name = f"{person.name} renamed"
    person.save()
    return person.pk


@pure
def fails_on_name(person, *, name):
    if person.name == name:
        raise LookupError(name)
    return person


@pure
def fails_because_of_itself(number, *, steps=1):
    """Its error is its own cause, directly or at the end of a chain of so many."""
    errors = [LookupError(number) for _ in range(steps)]
    for one, cause in zip(errors, errors[1:] + errors[:1], strict=True):
        one.__cause__ = cause
    raise errors[0]
