"""What a function or a callback leaves open or replaces on its connection costs its own object, and no other one."""

from contextlib import ExitStack

import pytest
from django.db import connection, connections, transaction
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from poolsave import Status, pooled_operation
from tests.models import Person

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")
OBJECTS = ["a", "b", "bad", "c", "d"]
kept = []


@pytest.fixture(params=["object", "chunk"])
def mode(request):
    return request.param


@pytest.fixture(params=["serial", "thread"])
def run(request, alias, mode):
    def run(function, **options):
        operation = pooled_operation(function).using(executor=request.param, databases=(alias,), transaction=mode)
        return operation.using(**{"workers": 1, "chunksize": 5, "keep": "all", "progress": False, **options}).map(
            OBJECTS
        )

    yield run
    kept.clear()


def names(alias):
    return set(Person.objects.using(alias).values_list("name", flat=True))


def save(alias, name):
    Person(name=name).save(using=alias)


def enter(alias):
    transaction.atomic(using=alias).__enter__()


def enter_twice(alias):
    enter(alias)
    enter(alias)


def enter_by_stack(alias):
    kept.append(ExitStack())
    kept[-1].enter_context(transaction.atomic(using=alias, savepoint=False))


def enter_by_generator(alias):
    def saves():
        with transaction.atomic(using=alias):
            yield save(alias, "in the generator")

    kept.append(saves())
    next(kept[-1])


@pytest.mark.parametrize("enters", [enter, enter_twice, enter_by_stack, enter_by_generator])
def test_block_that_is_not_left_fails_its_object(run, alias, enters):
    """Django would end that block in place of the object's own one, and commit nothing from then on."""

    def saves(name):
        save(alias, name)
        if name == "bad":
            enters(alias)

    report = run(saves)
    assert [outcome.status for outcome in report] == [Status.SUCCEEDED] * 2 + [Status.FAILED] + [Status.SUCCEEDED] * 2
    assert "inside of an atomic()" in str(report.failures[0].error)
    assert names(alias) == set(OBJECTS) - {"bad"}


@pytest.mark.parametrize("enters", [enter, enter_twice, enter_by_stack, enter_by_generator])
def test_block_that_an_error_leaves_open_is_rolled_back(run, alias, enters):
    def fails(name):
        save(alias, name)
        if name == "bad":
            enters(alias)
            save(alias, "inside")
            raise ValueError(name)

    report = run(fails)
    assert [(failure.item, type(failure.error)) for failure in report.failures] == [("bad", ValueError)]
    assert names(alias) == set(OBJECTS) - {"bad"}


def turn_autocommit_off(alias):
    connections[alias].set_autocommit(False)


def begin(alias):
    connections[alias].cursor().execute("BEGIN")


@pytest.mark.parametrize("begins", [enter, turn_autocommit_off, begin])
def test_transaction_that_a_callback_leaves_open_is_rolled_back(run, alias, begins):
    """Otherwise all objects after it would run inside of it, and be told as saved."""

    def saves(name):
        save(alias, name)
        if name == "bad":
            transaction.on_commit(leaves_open, using=alias)

    def leaves_open():
        begins(alias)
        save(alias, "by the callback")

    report = run(saves)
    assert [outcome.status for outcome in report] == [Status.SUCCEEDED] * 5
    if (alias, begins) == ("mariadb", begin):  # its driver cannot tell, and what comes next commits it
        assert names(alias) - {"by the callback"} == set(OBJECTS)
        return
    (told,) = [outcome for outcome in report if outcome.error is not None]
    assert told.item == "bad"
    assert "on_commit callback has left a transaction open" in str(told.error)
    assert names(alias) == set(OBJECTS)


@pytest.mark.skipif(not is_psycopg3, reason="psycopg 3 has pipelines")
def test_pipeline_that_is_not_left_fails_no_other_object(mode):
    """No transaction can begin in it, nor be rolled back."""

    def saves(name):
        save("postgres", name)
        if name == "bad":
            kept.append(connections["postgres"].connection.pipeline())
            kept[-1].__enter__()
            save("postgres", "in the pipeline")
            raise ValueError(name)

    operation = pooled_operation(saves).using(executor="thread", workers=1, databases=("postgres",), transaction=mode)
    report = operation.using(keep="all", progress=False, chunksize=5).map(OBJECTS)
    kept.clear()
    assert [(failure.item, failure.status) for failure in report.failures] == [("bad", Status.FAILED)]
    assert names("postgres") == set(OBJECTS) - {"bad"}


def delete_connection(alias):
    del connections[alias]


def replace_connection(alias):
    connections[alias] = connections[alias].copy()


@pytest.mark.parametrize("replaces", [delete_connection, replace_connection])
@pytest.mark.parametrize("fails", [False, True])
def test_replaced_connection_costs_no_later_object(mode, replaces, fails):
    """What it has saved on the other connection is not known, so it is lost; what comes after it is saved."""

    def saves(name):
        save("default", name)
        if name == "bad":
            replaces("default")
            connection.ensure_connection()
            if fails:
                raise ValueError(name)

    operation = pooled_operation(saves).using(executor="thread", workers=1, transaction=mode, chunksize=1)
    report = operation.using(keep="all", progress=False).map(OBJECTS)
    assert [(failure.item, failure.status) for failure in report.failures] == [("bad", Status.LOST)]
    assert names("default") == set(OBJECTS) - {"bad"}


def test_replaced_connection_loses_what_its_chunk_had_saved():
    def saves(name):
        save("default", name)
        if name == "bad":
            del connections["default"]
            raise ValueError(name)

    operation = pooled_operation(saves).using(executor="thread", workers=1, transaction="chunk", chunksize=5)
    report = operation.using(keep="all", progress=False).map(OBJECTS)
    assert [outcome.status for outcome in report] == [Status.LOST] * 3 + [Status.SUCCEEDED] * 2
    assert names("default") == {"c", "d"}


def test_failed_object_that_sets_autocommit_is_rolled_back(run, alias):
    """Django sends and rolls back savepoints only while its `autocommit` is False."""

    def fails(name):
        save(alias, name)
        if name == "bad":
            connections[alias].autocommit = True
            raise ValueError(name)
        if name == "b":
            connections[alias].autocommit = True

    report = run(fails)
    assert [failure.item for failure in report.failures] == ["bad"]
    assert names(alias) == set(OBJECTS) - {"bad"}
