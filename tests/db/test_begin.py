"""BEGIN goes along with the first statement of an object, and nothing else about that statement changes."""

from contextlib import suppress

import pytest
from django.db import DatabaseError, connections, transaction
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.test.utils import CaptureQueriesContext

from poolsave import pooled_operation
from tests.models import Person

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "postgres"]),
    pytest.mark.skipif(not is_psycopg3, reason="psycopg2 sends BEGIN by itself"),
]


def cursor():
    return connections["postgres"].cursor()


def rows_at_once(_item):
    with cursor() as found:
        found.execute("SELECT n, %s FROM generate_series(1, 3) n", ["text"])
        facts = found.rowcount, [column.name for column in found.description], found.statusmessage
        return *facts, found.fetchone(), found.fetchall(), found.nextset()


def several_statements(_item):
    with cursor() as found:
        found.execute("SELECT 1; SELECT 2")
        return found.fetchall(), found.nextset(), found.fetchall()


def hint(_item):
    with cursor() as found:
        found.execute("/* a hint */ SELECT 1")
        return found.fetchall()


def percent(_item):
    with cursor() as found:
        found.execute("SELECT '100%'")
        return found.fetchall()


def saves(item):
    person = Person.objects.using("postgres").create(name=f"p{item}")
    with cursor() as found:
        found.execute("DELETE FROM tests_badge; DELETE FROM tests_person WHERE id = %s", [person.pk])
        return person.name, found.rowcount


def iterates(_item):
    return [*Person.objects.using("postgres").iterator(chunk_size=1)]


def error_of(statement, follow=None):
    def run(_item):
        with cursor() as found:
            try:
                found.execute(statement)
            except DatabaseError as error:
                diagnosis = error.__cause__.diag
                said = str(error), diagnosis.sqlstate, diagnosis.statement_position
            if follow:
                try:
                    found.execute(follow)
                except DatabaseError as error:
                    said += (error.__cause__.sqlstate,)
        raise ValueError(said)

    return run


OK = [rows_at_once, several_statements, hint, percent, saves, iterates]
FAULTS = ["SELECT nothing", "SELEC 1", "SELECT 1 / 0", "SELECT 1; SELECT nothing", "VACUUM"]


def mapped(function):
    operation = pooled_operation(function, executor="serial", databases=("postgres",), progress=False, retries=0)
    return operation.map([1])


@pytest.mark.parametrize("function", OK, ids=lambda function: function.__name__)
def test_results_are_those_of_atomic(function):
    with transaction.atomic("postgres"):
        expected = function(1)
    assert mapped(function).values == [expected]


@pytest.mark.parametrize("follow", [None, "SELECT 1"])
@pytest.mark.parametrize("fault", FAULTS)
def test_errors_are_those_of_atomic(fault, follow):
    function = error_of(fault, follow)
    with pytest.raises(ValueError) as expected, transaction.atomic("postgres"):
        function(1)
    (failure,) = mapped(function).failures
    assert failure.error.args == expected.value.args


def test_work_before_and_after_a_caught_mistake_is_not_saved():
    def function(item):
        with cursor() as found, suppress(DatabaseError):
            found.execute("SELECT nothing")
        Person.objects.using("postgres").create(name=f"p{item}")

    assert mapped(function).failed == 1
    assert not Person.objects.using("postgres").exists()


def test_isolation_level_of_the_project_counts():
    import psycopg

    caller = connections["postgres"]
    caller.ensure_connection()
    caller.connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE

    def function(_item):
        with cursor() as found:
            found.execute("SHOW transaction_isolation")
            return found.fetchone()

    try:
        assert mapped(function).values == [("serializable",)]
    finally:
        caller.close()


def test_an_object_takes_one_round_trip_less_than_atomic(tmp_path):
    with cursor() as found:
        found.execute("SELECT 1")  # connects

    def messages(run):
        path = tmp_path / "trace"
        connection = connections["postgres"].connection.pgconn
        with path.open("w") as file:
            connection.trace(file.fileno())
            try:
                run()
            finally:
                connection.untrace()
        return [line.split("\t")[3] for line in path.read_text().splitlines() if "\tQuery\t" in line]

    def in_atomic():
        with transaction.atomic("postgres"):
            percent(1)

    assert len(messages(in_atomic)) == 3
    assert len(messages(lambda: mapped(percent))) == 2


def test_django_s_log_of_queries_shows_statements_only():
    with CaptureQueriesContext(connections["postgres"]) as asked:
        assert mapped(hint_free).ok
    assert [query["sql"] for query in asked][-2:] == ["SELECT 1", "COMMIT"]


def hint_free(_item):
    with cursor() as found:
        found.execute("SELECT 1")
