"""Transient database errors are tried again, everything else is the object's own failure."""

import pytest
from django.db import IntegrityError, OperationalError

from poolsave import _sqlstates
from tests import operations
from tests.models import Badge, Person

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "postgres"])
on_postgres = {"databases": ("postgres",), "chunksize": 1, "workers": 1}


@pytest.fixture(autouse=True)
def _fresh():
    operations.attempts_left.clear()


@pytest.mark.parametrize("options", [{"executor": "thread"}, {"start_method": "fork"}, {"executor": "serial"}])
def test_a_deadlock_is_tried_again_and_its_rows_are_there_once(options):
    report = operations.deadlocks_at_first.using(**on_postgres, **options).bind(alias="postgres").map(["a", "b"])
    assert report.values == ["a", "b"]
    assert [outcome.attempts for outcome in report] == [3, 3]
    assert Person.objects.using("postgres").count() == Badge.objects.using("postgres").count() == 2


def test_tries_end_and_the_last_error_is_told():
    operation = operations.deadlocks_at_first.using(**on_postgres, retries=1, start_method="fork")
    report = operation.bind(alias="postgres", times=5).map(["a"])
    assert [(failure.attempts, type(failure.error)) for failure in report.failures] == [(2, OperationalError)]
    assert list(report.by_cause()) == [("OperationalError", "40P01")]
    assert not Person.objects.using("postgres").exists()


def test_a_session_that_the_server_ends_is_replaced():
    report = operations.loses_its_session_at_first.using(**on_postgres, start_method="fork").map(["a", "b"])
    assert report.values == ["a", "b"]
    assert Person.objects.using("postgres").count() == 2


def test_without_a_transaction_nothing_is_tried_again():
    operation = operations.deadlocks_at_first.using(**on_postgres, transaction=None, start_method="fork")
    report = operation.bind(alias="postgres").map(["a"])
    assert [failure.attempts for failure in report.failures] == [1]


def test_an_object_s_own_failure_is_not_tried_again():
    Person(name="a").save(using="postgres")
    report = operations.save_person.using(**on_postgres, start_method="fork").bind(alias="postgres").map(["a"])
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
    assert _sqlstates.contact_lost(error) is lost
    wrapped = OperationalError("wrapped")
    wrapped.__cause__ = error
    assert _sqlstates.is_transient(wrapped) is transient


@pytest.mark.parametrize(("code", "transient", "lost"), [(1213, True, False), (1205, True, False), (2013, True, True)])
def test_mysql_has_numbers_of_its_own(code, transient, lost):
    error = type("OperationalError", (Exception,), {"__module__": "pymysql.err"})(code, "text")
    assert _sqlstates.is_transient(error) is transient
    assert _sqlstates.contact_lost(error) is lost
