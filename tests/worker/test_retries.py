"""Transient database errors are tried again, everything else is the object's own failure."""

import pytest
from django.db import IntegrityError, OperationalError

from poolsave._db import error_codes as _sqlstates
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


def test_tries_end_and_the_last_error_is_told(server, on):
    report = on(operations.deadlocks_at_first, retries=1).bind(times=5).map(["a"])
    assert [(failure.attempts, type(failure.error)) for failure in report.failures] == [(2, OperationalError)]
    assert list(report.by_cause()) == [("OperationalError", "40P01" if server == "postgres" else None)]
    assert not Person.objects.using(server).exists()


def test_a_session_that_the_server_ends_is_replaced(server, on):
    report = on(operations.loses_its_session_at_first).map(["a", "b"])
    assert report.values == ["a", "b"]
    assert [outcome.attempts for outcome in report] == [2, 2]
    assert Person.objects.using(server).count() == 2


def test_without_a_transaction_nothing_is_tried_again(on):
    report = on(operations.deadlocks_at_first, transaction=None).map(["a"])
    assert [failure.attempts for failure in report.failures] == [1]


def test_an_object_s_own_failure_is_not_tried_again(server, on):
    Person(name="a").save(using=server)
    report = on(operations.save_person).map(["a"])
    assert [(failure.attempts, type(failure.error)) for failure in report.failures] == [(1, IntegrityError)]


class Made(Exception):
    def __init__(self, **facts):
        super().__init__("made")
        self.__dict__.update(facts)


@pytest.mark.parametrize(
    ("facts", "transient", "lost"),
    [
        ({"sqlstate": "40001"}, True, False),
        ({"pgcode": "40P01"}, True, False),
        ({"sqlstate": "55P03"}, True, False),
        ({"sqlstate": "08006"}, True, True),
        ({"pgcode": "57P01"}, True, True),
        ({"sqlstate": "40003"}, False, True),
        ({"sqlstate": "23505"}, False, False),
        ({"sqlstate": "57014"}, False, False),
        ({"sqlite_errorname": "SQLITE_BUSY"}, True, False),
        ({"sqlite_errorname": "SQLITE_LOCKED_SHAREDCACHE"}, True, False),
        ({"sqlite_errorname": "SQLITE_CONSTRAINT_UNIQUE"}, False, False),
        ({}, False, False),
    ],
)
def test_what_the_database_says_decides(facts, transient, lost):
    error = Made(**facts)
    assert _sqlstates.is_transient(error) is transient
    assert _sqlstates.connection_lost(error) is lost
    wrapped = OperationalError("wrapped")
    wrapped.__cause__ = error
    assert _sqlstates.is_transient(wrapped) is transient


@pytest.mark.parametrize(
    ("code", "transient", "lost"),
    [
        (1213, True, False),
        (1205, True, False),
        (1020, True, False),
        (1040, True, False),
        (1969, False, False),
        (1062, False, False),
        (1927, True, True),
        (2006, True, True),
        (2013, True, True),
        (2055, True, True),
    ],
)
def test_mysql_has_numbers_of_its_own(code, transient, lost):
    error = type("OperationalError", (Exception,), {"__module__": "pymysql.err"})(code, "text")
    assert _sqlstates.is_transient(error) is transient
    assert _sqlstates.connection_lost(error) is lost
