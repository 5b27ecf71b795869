"""`batch_writes` in workers: deaths, time-outs, pipelines and rows keep the promises of a chunk's transaction."""

import os
import signal
import time
from contextlib import contextmanager

import pytest
from django.db import connections, transaction

from poolsave import Status, TimedOut, pooled_operation
from tests.conftest import wait_until
from tests.models import Badge, Person, Tag, Thing
from tests.support.comparing import ALIAS, called

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")

OPTIONS = {"databases": (ALIAS,), "transaction": "chunk", "batch_writes": True, "progress": False, "keep": "all"}
NAMES = [f"person {number}" for number in range(12)]

saving = pooled_operation(**OPTIONS, workers=1, chunksize=6, start_method="fork")


def names():
    return sorted(Person.objects.using(ALIAS).values_list("name", flat=True))


@saving
def save_and_die(name, *, fatal):
    Person(name=name).save(using=ALIAS)
    if name == fatal:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_death_costs_the_object_that_it_came_in():
    report = save_and_die.bind(fatal=NAMES[3]).map(NAMES)
    assert [(failure.item, failure.status) for failure in report.failures] == [(NAMES[3], Status.FAILED)]
    assert names() == sorted(set(NAMES) - {NAMES[3]})
    assert Badge.objects.using(ALIAS).count() == 11


@saving
def save_and_tell(name, *, path):
    (path / name).write_text(str(os.getpid()))
    Person(name=name).save(using=ALIAS)


def test_a_death_while_rows_are_sent_costs_nothing(tmp_path):
    with uncommitted(Person, NAMES[8]) as wait_until_waited_for:
        outcomes = save_and_tell.bind(path=tmp_path).using(workers=2, start_method="forkserver").stream(NAMES)
        first = next(outcomes)
        wait_until_waited_for()
        killed = int((tmp_path / NAMES[11]).read_text())
        os.kill(killed, signal.SIGKILL)
    rest = [*outcomes]
    assert {outcome.status for outcome in (first, *rest)} == {Status.SUCCEEDED}
    assert killed not in {outcome.worker for outcome in rest if outcome.index > 5}
    assert names() == sorted(NAMES)
    assert Badge.objects.using(ALIAS).count() == 12


@contextmanager
def uncommitted(model, name):
    """Hold an INSERT open in a session of its own; gives what waits until another session waits for it."""
    connection = connections[ALIAS].copy()
    with transaction_of(connection) as cursor:
        cursor.execute(f"INSERT INTO {model._meta.db_table} (name) VALUES (%s)", [name])

        def wait_until_waited_for():
            other = connections[ALIAS].copy()
            try:
                with other.cursor() as asking:
                    wait_until(lambda: waits_in(asking))
            finally:
                other.close()

        yield wait_until_waited_for


def waits_in(cursor):
    cursor.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return cursor.fetchone()[0]


@contextmanager
def transaction_of(connection):
    connection.set_autocommit(False)
    try:
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.rollback()
        connection.close()


@saving
def save_and_wait(name, *, slow):
    Person(name=name).save(using=ALIAS)
    if name == slow:
        time.sleep(30)


def test_a_time_out_takes_the_rows_of_its_object_along():
    report = save_and_wait.bind(slow=NAMES[2]).using(timeout=1).map(NAMES)
    (failure,) = report.failures
    assert (failure.item, failure.status, type(failure.error)) == (NAMES[2], Status.FAILED, TimedOut)
    assert names() == sorted(set(NAMES) - {NAMES[2]})


def tag_of(name):
    Tag(name=name).save(using=ALIAS)
    return name


def person_of(name):
    Person(name=name).save(using=ALIAS)
    transaction.on_commit(lambda: called.append(name), using=ALIAS)


def test_stages_that_share_a_worker_buffer_their_own_rows():
    called.clear()
    options = {**OPTIONS, "executor": "thread", "workers": 1, "chunksize": 6}
    report = (pooled_operation(**options)(tag_of) | pooled_operation(**options)(person_of)).map(NAMES)
    assert report.ok
    assert sorted(called) == names() == sorted(NAMES)
    assert Tag.objects.using(ALIAS).count() == 12


def count_visit(thing):
    thing.visits += 1
    thing.save()
    Tag(name=f"visit of {thing.pk}").save(using=ALIAS)


def test_rows_of_a_queryset_are_changed_beside_buffered_ones():
    Thing.objects.using(ALIAS).bulk_create([Thing(visits=number) for number in range(20)])
    operation = pooled_operation(count_visit).using(**OPTIONS, executor="thread", workers=2, chunksize=5)
    assert operation.map(Thing.objects.using(ALIAS).all()).ok
    assert sorted(Thing.objects.using(ALIAS).values_list("visits", flat=True)) == [*range(1, 21)]
    assert Tag.objects.using(ALIAS).count() == 20


def test_workers_that_insert_the_same_names_agree_on_one_each():
    operation = pooled_operation(person_of).using(**OPTIONS, executor="thread", workers=2, chunksize=10, retries=8)
    people = [f"person {number % 40}" for number in [*range(80)][::-1]]
    report = operation.map(people)
    assert (report.succeeded, report.failed) == (40, 40)
    assert len(names()) == 40
    assert Badge.objects.using(ALIAS).count() == 40
