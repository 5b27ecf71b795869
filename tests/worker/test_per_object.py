"""`transaction="object"`: SUCCEEDED means that the COMMIT returned, FAILED that nothing is left."""

from functools import partial

import pytest
from django.db import connections, transaction

from poolsave import Status
from poolsave._db.transactions import run_in_transaction
from poolsave.executors.serial import LocalMarks
from tests.models import Badge, Employee, Person, Visit
from tests.support import operations, pools

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")

POOLS = ["serial", "thread", "fork"]


@pytest.fixture(params=POOLS)
def run(request, alias):
    """Run an operation on one alias."""

    def run(operation, objects, **more):
        return operation.using(**pools.POOLS[request.param], databases=(alias,), **more).bind(alias=alias).map(objects)

    return run


def names(alias):
    return sorted(Person.objects.using(alias).values_list("name", flat=True))


def test_a_failed_object_leaves_nothing_and_its_neighbours_stay(run, alias):
    report = run(operations.save_person.bind(fail=("b",)), ["a", "b", "c"], chunksize=3)
    assert [outcome.status for outcome in report] == [Status.SUCCEEDED, Status.FAILED, Status.SUCCEEDED]
    assert names(alias) == ["a", "c"]
    assert Badge.objects.using(alias).count() == 2


def test_a_real_integrity_error_does_not_poison_its_neighbours(run, alias):
    Person(name="b").save(using=alias)
    report = run(operations.save_person, ["a", "b", "c"], chunksize=3)
    assert report.failed == 1
    ((name, state), _outcomes), *others = report.by_cause().items()
    assert name == "IntegrityError"
    assert state == ("23505" if alias == "postgres" else None)
    assert not others
    assert names(alias) == ["a", "b", "c"]


def test_parents_and_their_receivers_are_saved(run, alias):
    report = run(operations.save_employee, ["a", "b"])
    assert report.ok
    assert Employee.objects.using(alias).filter(pk__in=report.values).count() == 2
    assert Badge.objects.using(alias).count() == 2


@pytest.mark.parametrize("operation", ["swallows_the_error", "rolls_back_by_itself", "closes_its_connection"])
def test_a_transaction_that_can_only_be_rolled_back_is_a_failure(run, alias, operation):
    Person(name="taken").save(using=alias)
    report = run(getattr(operations, operation), ["a", "b"])
    assert [failure.status for failure in report.failures] == [Status.FAILED] * 2
    assert "can only be rolled back" in str(report.failures[0].error)
    assert names(alias) == ["taken"]


def test_aborted_transaction_unknown_to_django_is_a_failure(run, alias):
    """PostgreSQL answers COMMIT with ROLLBACK, and no driver raises anything."""
    report = run(operations.swallows_the_raw_error, ["a"])
    if alias == "postgres":
        assert report.failed == 1
        assert names(alias) == []
    else:  # SQLite and MariaDB go on after a failed statement
        assert report.ok
        assert names(alias) == ["a before"]


def test_violation_at_commit_is_a_failure(run, alias):
    report = run(operations.violates_at_commit, ["a"])
    assert report.failed == 1
    assert names(alias) == []
    assert not Visit.objects.using(alias).exists()


def test_callbacks_run_after_the_commit_and_cannot_undo_it(run, alias):
    report = run(operations.with_callback, ["a", "bad"])
    assert report.succeeded == 2
    assert names(alias) == ["a", "a called", "bad", "bad called"]
    (flawed,) = report.flawed
    assert flawed.item == "bad"
    assert isinstance(flawed.error, ZeroDivisionError)
    assert flawed.value == Person.objects.using(alias).get(name="bad").pk
    assert "flawed" in str(report)


def test_an_object_covers_several_databases(run):
    report = operations.saves_in_two.using(databases=("default", "second"), start_method="fork").map(["a", "bad", "c"])
    assert [failure.item for failure in report.failures] == ["bad"]
    assert names("default") == names("second") == ["a", "c"]


def test_without_a_transaction_the_function_manages_its_own(run, alias):
    report = run(operations.save_person.bind(fail=("b",)), ["a", "b"], transaction=None)
    assert report.failed == 1
    assert names(alias) == ["a", "b"]


def test_a_result_that_cannot_be_pickled_is_rolled_back(alias):
    operation = operations.saves_and_returns_a_lock.using(databases=(alias,), start_method="fork").bind(alias=alias)
    report = operation.map(["a"])
    assert report.failed == 1
    assert names(alias) == []


def test_debug_query_log_does_not_grow_in_workers(settings):
    settings.DEBUG = True
    report = operations.counts_logged_queries.using(start_method="fork", workers=1, chunksize=5).map(range(50))
    assert max(report.values) <= 5 * 3
    assert connections["default"].queries_log is not None


def test_work_before_the_first_query_holds_no_lock_on_sqlite(tmp_path):
    """Two objects wait for each other before they ask the database anything."""
    operation = operations.meets_then_saves.using(workers=2, chunksize=1, start_method="fork")
    report = operation.starmap([(str(tmp_path), "a", "b"), (str(tmp_path), "b", "a")])
    report.raise_if_failed()
    assert names("default") == ["a", "b"]
    assert report.values == [True, True]


@pytest.mark.parametrize("mode", ["object", "chunk"])
def test_a_transaction_that_sqlite_ended_by_itself_is_a_failure(run, alias, mode):
    if alias != "default":
        return
    Person(name="taken").save()
    report = run(operations.lets_sqlite_roll_back, ["a", "b"], transaction=mode, chunksize=2)
    assert [failure.status for failure in report.failures] == [Status.FAILED] * 2
    assert names("default") == ["taken"]


def test_serial_without_autocommit_leaves_commit_to_the_caller():
    alias = "postgres"  # on SQLite the end of a savepoint commits then, as Django's documentation says
    connections[alias].set_autocommit(False)
    try:
        operations.with_callback.using(executor="serial", databases=(alias,)).bind(alias=alias).map(["a"])
        assert names(alias) == ["a"]
    finally:
        connections[alias].rollback()
        connections[alias].set_autocommit(True)
    assert names(alias) == []


def test_callbacks_are_run_or_left_per_database():
    with transaction.atomic(using="default"):
        report = (
            operations.with_callback.using(executor="serial", databases=("default", "second"))
            .bind(alias="second")
            .map(["a", "bad"])
        )
        assert report.succeeded == 2
        assert [flawed.item for flawed in report.flawed] == ["bad"]
    assert names("second") == ["a", "a called", "bad", "bad called"]


@pytest.mark.skipif("pooled" not in connections, reason="psycopg2 has no way to send a statement without its answer")
def test_commit_whose_answer_is_not_awaited_is_lost(monkeypatch):
    """A signal's handler raises. Then autocommit cannot be turned on, an error that says nothing of COMMIT."""

    def sends_only(raw):
        raw.pgconn.send_query(b"COMMIT")
        raise KeyboardInterrupt

    def call():
        Person(name="a").save(using="postgres")
        raw = connections["postgres"].connection
        monkeypatch.setattr(raw, "commit", partial(sends_only, raw))

    result = run_in_transaction(call, LocalMarks(), 0, ["postgres"])
    assert (result.status, result.retry) == (Status.LOST, False)
    assert type(result.error) is KeyboardInterrupt
