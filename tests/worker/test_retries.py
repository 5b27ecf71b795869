"""Transient database errors are tried again, everything else is the object's own failure."""

import contextlib
import random

import pytest
from django.db import DatabaseError, IntegrityError, OperationalError, connections, transaction

from poolsave import Status, pooled_operation
from tests.models import Badge, Person, Tag
from tests.support import operations

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


@pytest.fixture
def on(server):
    """An operation on one server, with one worker."""
    operations.attempts_left.clear()
    Tag.objects.using(server).bulk_create([Tag(name="left"), Tag(name="right")])

    def on(operation, **options):
        options = {"databases": (server,), "chunksize": 1, "workers": 1, "start_method": "fork", **options}
        return operation.using(**options).bind(alias=server)

    return on


@pytest.mark.parametrize("options", [{"executor": "thread"}, {"executor": "process"}, {"executor": "serial"}])
def test_a_deadlock_is_tried_again_and_its_rows_are_there_once(server, on, options):
    report = on(operations.deadlocks_at_first, **options).map(["a", "b"])
    assert report.values == ["a", "b"]
    assert [outcome.attempts for outcome in report] == [3, 3]
    assert Person.objects.using(server).count() == Badge.objects.using(server).count() == 2


def test_pauses_take_nothing_from_the_generator_of_the_user(on):
    random.seed(7)
    assert on(operations.deadlocks_at_first, executor="serial").map(["a"]).ok
    drawn = random.random()
    random.seed(7)
    assert random.random() == drawn


def goes_on(name, alias):
    with contextlib.suppress(DatabaseError):
        operations.deadlock(alias)


def goes_on_and_asks(name, alias):
    goes_on(name, alias)
    Tag.objects.using(alias).count()


def goes_on_after_a_block(name, alias):
    with contextlib.suppress(DatabaseError), transaction.atomic(using=alias, savepoint=False):
        operations.deadlock(alias)


def raises_its_own_error(name, alias):
    try:
        operations.deadlock(alias)
    except DatabaseError:
        raise ValueError(name) from None


@pytest.mark.parametrize("mode", ["object", "chunk"])
@pytest.mark.parametrize("executor", ["thread", "serial"])
@pytest.mark.parametrize("way", [goes_on, goes_on_and_asks, goes_on_after_a_block, raises_its_own_error])
def test_a_deadlock_that_the_function_caught_is_tried_again(server, on, way, executor, mode):
    met = []

    def save(name, alias):
        Person(name=name).save(using=alias)
        if name == "b" and not met:
            met.append(name)
            way(name, alias)

    report = on(
        pooled_operation(save, executor=executor, transaction=mode, chunksize=3, progress=False, keep="all")
    ).map("abc")
    assert [(outcome.status, outcome.item) for outcome in report] == [(Status.SUCCEEDED, name) for name in "abc"]
    assert [*report][1].attempts == 2
    assert sorted(Person.objects.using(server).values_list("name", flat=True)) == list("abc")


NOT_AVAILABLE = {
    "postgresql": "DO $$ BEGIN RAISE EXCEPTION 'locked' USING ERRCODE = '55P03'; END $$",
    "mysql": "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 3572",
}


def test_lock_skipped_inside_atomic_is_not_retried(on):
    """The savepoint undoes it, so that the object can be saved, as in a loop."""

    def save(name, alias):
        with contextlib.suppress(DatabaseError), transaction.atomic(using=alias):
            operations.ask(alias, **NOT_AVAILABLE)
        Person(name=name).save(using=alias)

    report = on(pooled_operation(save, progress=False, keep="all")).map("ab")
    assert [(outcome.status, outcome.attempts) for outcome in report] == [(Status.SUCCEEDED, 1)] * 2


def closes_it_by_the_driver(alias):
    connections[alias].connection.close()


def loses_it(alias):
    with contextlib.suppress(DatabaseError):
        operations.ask(alias, postgresql="SELECT pg_terminate_backend(pg_backend_pid())", mysql="KILL CONNECTION_ID()")


@pytest.mark.parametrize("mode", ["object", "chunk"])
@pytest.mark.parametrize("way", [closes_it_by_the_driver, loses_it])
def test_connection_lost_before_commit_is_a_failure(server, on, way, mode):
    """The driver knows that its connection is gone, and sends no COMMIT."""

    def save(name, alias):
        Person(name=name).save(using=alias)
        if name == "b":
            way(alias)

    report = on(pooled_operation(save, transaction=mode, chunksize=3, progress=False)).map("abc")
    assert [(failure.item, failure.status) for failure in report.failures] == [("b", Status.FAILED)]
    assert sorted(Person.objects.using(server).values_list("name", flat=True)) == ["a", "c"]


def test_retries_end_with_the_last_error(server, on):
    report = on(operations.deadlocks_at_first, retries=1).bind(times=5).map(["a"])
    assert [(failure.attempts, type(failure.error)) for failure in report.failures] == [(2, OperationalError)]
    assert list(report.by_cause()) == [("OperationalError", "40P01" if server == "postgres" else None)]
    assert not Person.objects.using(server).exists()


def test_a_session_that_the_server_ends_is_replaced(server, on):
    report = on(operations.loses_its_session_at_first).map(["a", "b"])
    assert report.values == ["a", "b"]
    assert [outcome.attempts for outcome in report] == [2, 2]
    assert Person.objects.using(server).count() == 2


def test_no_retry_without_a_transaction(on):
    report = on(operations.deadlocks_at_first, transaction=None).map(["a"])
    assert [failure.attempts for failure in report.failures] == [1]


def test_an_object_s_own_failure_is_not_tried_again(server, on):
    Person(name="a").save(using=server)
    report = on(operations.save_person).map(["a"])
    assert [(failure.attempts, type(failure.error)) for failure in report.failures] == [(1, IntegrityError)]
