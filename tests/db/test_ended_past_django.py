"""Work that is committed or rolled back past Django is refused or lost, and never reported as anything else."""

from contextlib import suppress
from functools import partial

import pytest
from django.db import connections, transaction
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from poolsave import Status, pooled_operation
from tests.conftest import needs_mariadb
from tests.models import Person

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")
OBJECTS = ["a", "bad", "c"]


@pytest.fixture(params=["serial", "thread"])
def run(request, alias, mode):
    """The caller's own connection, and one that poolsave has made."""

    def run(function, objects=OBJECTS, **options):
        operation = pooled_operation(function).using(executor=request.param, databases=(alias,), transaction=mode)
        return operation.using(**{"workers": 1, "chunksize": 4, "keep": "all", "progress": False, **options}).map(
            objects
        )

    return run


@pytest.fixture(params=["object", "chunk"])
def mode(request):
    return request.param


def execute(alias, *statements):
    with connections[alias].cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def execute_by_driver(alias, *statements):
    cursor = connections[alias].connection.cursor()
    for statement in statements:
        cursor.execute(statement)
    cursor.close()


def write_by_driver(alias, name):
    cursor = connections[alias].connection.cursor()
    cursor.execute(f"INSERT INTO tests_person (name) VALUES ('{name}')")
    cursor.close()


def end_by_driver(alias, how):
    getattr(connections[alias].connection, how)()


def use_as_context(alias):
    raw = connections[alias].connection
    with raw:
        pass


def connect_anew(alias):
    connections[alias].connect()


def close_and_connect(alias):
    connections[alias].close()
    connections[alias].connect()


def run_script(alias):
    raw = connections[alias].connection
    if hasattr(raw, "executescript"):
        raw.executescript("SELECT 1;")


def reset_isolation_level(alias):
    raw = connections[alias].connection
    if hasattr(raw, "isolation_level"):
        raw.isolation_level = None


WAYS = {
    "commit": lambda alias: execute(alias, "COMMIT"),
    "commit, begin": lambda alias: execute(alias, "COMMIT", "BEGIN"),
    "rollback, begin": lambda alias: execute(alias, "ROLLBACK", "BEGIN"),
    "commit by a driver's cursor": lambda alias: execute_by_driver(alias, "COMMIT"),
    "commit, begin by a driver's cursor": lambda alias: execute_by_driver(alias, "COMMIT", "BEGIN"),
    "driver's commit": lambda alias: end_by_driver(alias, "commit"),
    "driver's rollback": lambda alias: end_by_driver(alias, "rollback"),
    "driver's context": use_as_context,
    "close": lambda alias: connections[alias].close(),
    "driver's close": lambda alias: end_by_driver(alias, "close"),
    "connect": connect_anew,
    "close, connect": close_and_connect,
    "executescript": run_script,
    "isolation_level": reset_isolation_level,
}


def test_a_report_is_true_whatever_ends_a_transaction(run, alias):
    """What is FAILED is gone, what SUCCEEDED is there, and nothing is run twice that may have been saved."""

    def ends(item):
        way, bad, fails = item
        name = f"{way} {fails}"
        Person(name=f"{name} before" if bad else f"{name} {bad}").save(using=alias)
        if bad:
            WAYS[way](alias)
            Person(name=f"{name} after").save(using=alias)
            if fails:
                raise ValueError(name)

    report = run(
        ends, [(way, bad, fails) for way in WAYS for fails in (True, False) for bad in (False, True)], chunksize=2
    )
    found = set(Person.objects.using(alias).values_list("name", flat=True))
    for outcome in report:
        way, bad, fails = outcome.item
        wanted = {f"{way} {fails} {when}" for when in (("before", "after") if bad else (False,))}
        if outcome.status is Status.SUCCEEDED:
            assert wanted <= found
        elif outcome.status is Status.FAILED:
            assert not wanted & found
    assert report.succeeded >= len(WAYS)


def saves_and_executes(name, *, alias, statement):
    Person(name=name).save(using=alias)
    if name == "bad":
        execute(alias, statement)


@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK", "SELECT 1; COMMIT"])
def test_an_end_that_is_refused_costs_no_other_object(run, alias, statement):
    report = run(partial(saves_and_executes, alias=alias, statement=statement))
    assert [(failure.item, failure.status) for failure in report.failures] == [("bad", Status.FAILED)]
    assert "would end the transaction of this object" in str(report.failures[0].error)
    assert {outcome.attempts for outcome in report} == {1}
    assert set(Person.objects.using(alias).values_list("name", flat=True)) == {"a", "c"}


def test_the_transaction_of_the_caller_s_goes_on(alias, mode):
    operation = pooled_operation(partial(saves_and_executes, alias=alias, statement="COMMIT"))
    operation = operation.using(executor="serial", databases=(alias,), transaction=mode, progress=False, chunksize=3)
    with transaction.atomic(using=alias):
        Person(name="mine").save(using=alias)
        report = operation.map(OBJECTS)
        transaction.set_rollback(True, using=alias)
    assert (report.succeeded, report.failed) == (2, 1)
    assert not Person.objects.using(alias).exists()


@pytest.mark.parametrize("executor", ["serial", "thread"])
def test_without_a_transaction_nothing_is_refused(alias, executor):
    def commits(name):
        execute(alias, "BEGIN")
        Person(name=name).save(using=alias)
        execute(alias, "COMMIT")
        with transaction.atomic(using=alias):
            write_by_driver(alias, f"{name} too")

    operation = pooled_operation(commits).using(executor=executor, transaction=None, progress=False)
    assert operation.map(["a"]).ok
    assert set(Person.objects.using(alias).values_list("name", flat=True)) == {"a", "a too"}


def test_rows_written_by_the_driver_alone_are_rolled_back(run, alias):
    """On SQLite, where a worker begins with the first statement, too."""

    def writes(name):
        connections[alias].ensure_connection()
        write_by_driver(alias, name)
        if name == "bad":
            raise ValueError(name)

    assert [failure.item for failure in run(writes).failures] == ["bad"]
    assert set(Person.objects.using(alias).values_list("name", flat=True)) == {"a", "c"}


@pytest.mark.parametrize("executor", ["serial", "thread"])
@pytest.mark.skipif(not is_psycopg3, reason="psycopg2 has no such blocks")
def test_a_block_of_psycopg_is_part_of_the_object(mode, executor):
    def writes(name):
        connection = connections["postgres"]
        connection.ensure_connection()
        with connection.connection.transaction():
            write_by_driver("postgres", name)
        if name == "bad":
            raise ValueError(name)

    operation = pooled_operation(writes).using(executor=executor, transaction=mode, databases=("postgres",))
    assert operation.using(workers=1, chunksize=3, progress=False).map(OBJECTS).failed == 1
    assert set(Person.objects.using("postgres").values_list("name", flat=True)) == {"a", "c"}


@needs_mariadb
@pytest.mark.parametrize("executor", ["serial", "thread"])
def test_mariadb_procedure_that_commits_loses_what_called_it(mode, executor):
    execute("mariadb", "DROP PROCEDURE IF EXISTS commits", "CREATE PROCEDURE commits() COMMIT")

    def calls(name):
        Person(name=name).save(using="mariadb")
        if name.startswith("bad"):
            execute("mariadb", "CALL commits()")
        if name == "bad":
            raise ValueError(name)

    operation = pooled_operation(calls).using(executor=executor, transaction=mode, databases=("mariadb",), workers=1)
    report = operation.using(chunksize=4, progress=False, keep="all").map(["a", "bad", "c", "bad too"])
    execute("mariadb", "DROP PROCEDURE commits")
    lost = {outcome.item for outcome in report if outcome.status is Status.LOST}
    assert lost == ({"bad", "bad too"} if mode == "object" else {"a", "bad", "c", "bad too"})
    assert report.failed == 0
    assert {outcome.attempts for outcome in report} == {1}
    assert Person.objects.using("mariadb").count() == 4


def test_stage_that_ends_its_transaction_fails_its_object_only():
    first = pooled_operation(partial(saves_and_executes, alias="default", statement="COMMIT"))
    second = pooled_operation(lambda _nothing: Person.objects.count())
    pipeline = (first | second).using(executor="thread", workers=1, progress=False, transaction="chunk", chunksize=3)
    report = pipeline.map(OBJECTS)
    assert [(failure.item, failure.status) for failure in report.failures] == [("bad", Status.FAILED)]
    assert set(Person.objects.values_list("name", flat=True)) == {"a", "c"}


def test_a_worker_on_sqlite_begins_with_the_driver_s_statement(mode):
    """Also where the object sends nothing through Django."""

    def writes(name):
        raw = connections["default"].connection
        raw.execute("INSERT INTO tests_person (name) VALUES (?)", [name])
        if name == "bad":
            raise ValueError(name)

    def connects_first(name):
        connections["default"].ensure_connection()
        writes(name)

    operation = pooled_operation(connects_first).using(executor="thread", workers=1, transaction=mode, chunksize=3)
    assert operation.using(progress=False).map(OBJECTS).failed == 1
    assert set(Person.objects.values_list("name", flat=True)) == {"a", "c"}


@pytest.mark.parametrize("follows", [True, False])
def test_a_row_that_came_before_begin_on_sqlite_is_lost(follows):
    import sqlite3

    @pooled_operation(executor="thread", workers=1, databases=("default",), progress=False)
    def save(name):
        connections["default"].ensure_connection()
        sqlite3.Cursor(connections["default"].connection).execute("INSERT INTO tests_person (name) VALUES ('cursor')")
        if follows:
            Person.objects.create(name=name)
        raise ValueError(name)

    (failure,) = save.map(["name"]).failures
    assert failure.status is Status.LOST
    assert [person.name for person in Person.objects.all()] == ["cursor"]


def commit_unseen(raw):
    """By a cursor that the connection was not asked for, in one text, so that its status is the same afterwards."""
    if is_psycopg3:
        from psycopg import ClientCursor as Cursor
    else:
        from psycopg2.extensions import cursor as Cursor  # noqa: N812
    Cursor(raw).execute("COMMIT; BEGIN")


@pytest.mark.parametrize("fails", [True, False])
def test_a_chunk_whose_savepoints_are_gone_is_not_run_again(fails):
    def commits(name):
        Person(name=name).save(using="postgres")
        if name == "bad":
            commit_unseen(connections["postgres"].connection)
            if fails:
                raise ValueError(name)

    operation = pooled_operation(commits).using(executor="thread", workers=1, transaction="chunk", chunksize=4)
    report = operation.using(databases=("postgres",), keep="all", progress=False).map(["a", "bad", "c", "d"])
    lost = {outcome.item for outcome in report if outcome.status is Status.LOST}
    assert lost == ({"a", "bad"} if fails else {"a", "bad", "c"})
    found = set(Person.objects.using("postgres").values_list("name", flat=True))
    assert found == ({"a", "bad", "c", "d"} if fails else {"a", "bad", "d"})
    assert report.failed == 0
    assert {outcome.attempts for outcome in report} == {1}


@pytest.mark.parametrize("how", [execute, execute_by_driver])
@pytest.mark.parametrize("begins", [False, True])
def test_or_rollback_of_sqlite_lets_no_statement_follow(mode, how, begins):
    """A function that catches its error would go on without a transaction, where each statement is committed."""
    Person(pk=1, name="there").save()

    def goes_on(name):
        Person(name=f"{name} before").save()
        if name.startswith("bad"):
            with suppress(Exception):
                how("default", "INSERT OR ROLLBACK INTO tests_person (id, name) VALUES (1, 'twin')")
            with suppress(Exception):
                execute("default", *(["BEGIN"] if begins else []))
            with suppress(Exception):
                write_by_driver("default", f"{name} by the driver")
            with suppress(Exception):
                Person(name=f"{name} behind").save()
        if name == "bad":
            raise ValueError(name)

    operation = pooled_operation(goes_on).using(executor="thread", transaction=mode, workers=1, chunksize=4)
    report = operation.using(progress=False, keep="all").map(["a", "bad", "bad too", "c"])
    assert {failure.item: failure.status for failure in report.failures} == dict.fromkeys(
        ["bad", "bad too"], Status.FAILED
    )
    assert set(Person.objects.values_list("name", flat=True)) == {"there", "a before", "c before"}


def send_unbound(raw):
    from MySQLdb import _mysql

    _mysql.connection.query(raw, "COMMIT")


UNSEEN = {
    "a list of assignments": lambda: execute("mariadb", "SET @a = 1, autocommit = 1"),
    "an executable comment": lambda: execute("mariadb", "/*!40000 COMMIT */"),
    "an anonymous block": lambda: execute("mariadb", "BEGIN NOT ATOMIC COMMIT; END"),
    "another user": lambda: connections["mariadb"].connection.change_user("root", "", "mysql"),
    "the driver's base class": lambda: send_unbound(connections["mariadb"].connection),
}
"""Ends of MariaDB's that no text and no method of the guard's shows."""


@needs_mariadb
@pytest.mark.parametrize("executor", ["serial", "thread"])
@pytest.mark.parametrize("fails", [True, False])
def test_unseen_end_on_mariadb_is_lost(mode, executor, fails):
    def ends(way):
        Person(name=way).save(using="mariadb")
        UNSEEN[way]()
        if fails:
            raise ValueError(way)

    operation = pooled_operation(ends).using(executor=executor, transaction=mode, databases=("mariadb",), workers=1)
    report = operation.using(chunksize=2, progress=False, keep="all").map(UNSEEN)
    assert {outcome.item: outcome.status for outcome in report} == dict.fromkeys(UNSEEN, Status.LOST)
    assert {outcome.attempts for outcome in report} == {1}


@needs_mariadb
def test_object_after_an_unseen_end_on_mariadb_is_saved_again():
    def ends(name):
        Person(name=name).save(using="mariadb")
        if name == "bad":
            UNSEEN["another user"]()

    operation = pooled_operation(ends).using(executor="thread", databases=("mariadb",), workers=1, progress=False)
    report = operation.using(keep="all").map(OBJECTS)
    assert [outcome.status for outcome in report] == [Status.SUCCEEDED, Status.LOST, Status.SUCCEEDED]
    assert set(Person.objects.using("mariadb").values_list("name", flat=True)) == {"a", "c"}


@pytest.mark.skipif(not is_psycopg3, reason="psycopg2 has no such object")
@pytest.mark.parametrize("executor", ["serial", "thread"])
@pytest.mark.parametrize("fails", [True, False])
def test_end_by_libpq_is_lost(mode, executor, fails):
    """Whether or not a statement follows, which begins another transaction."""

    def ends(name):
        Person(name=name).save(using="postgres")
        connections["postgres"].connection.pgconn.exec_(b"COMMIT")
        if name == "followed":
            Person(name=name).save(using="postgres")
        if fails:
            raise ValueError(name)

    operation = pooled_operation(ends).using(executor=executor, transaction=mode, databases=("postgres",), workers=1)
    report = operation.using(chunksize=2, progress=False, keep="all").map(["alone", "followed"])
    assert {outcome.status for outcome in report} == {Status.LOST}


@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize(
    "write", ["INSERT INTO tests_person (name) VALUES ('behind')", "CREATE TABLE made_behind (id int)"]
)
def test_what_follows_a_rollback_on_the_caller_s_sqlite_is_lost(mode, fails, write):
    """The caller's own connection shows only what comes through Django."""
    Person(pk=1, name="there").save()

    def goes_on(_item):
        with suppress(Exception):
            execute("default", "INSERT OR ROLLBACK INTO tests_person (id, name) VALUES (1, 'twin')")
        connections["default"].connection.execute(write)
        if fails:
            raise ValueError(write)

    report = pooled_operation(goes_on).using(executor="serial", transaction=mode, progress=False).map([1])
    execute("default", "DROP TABLE IF EXISTS made_behind")
    assert [failure.status for failure in report.failures] == [Status.LOST]


@pytest.mark.parametrize("executor", ["serial", "thread"])
def test_new_connection_is_refused_and_costs_one_object(mode, executor, alias):
    def connects(name):
        Person(name=name).save(using=alias)
        if name == "bad":
            connect_anew(alias)

    operation = pooled_operation(connects).using(executor=executor, transaction=mode, databases=(alias,), workers=1)
    report = operation.using(chunksize=3, progress=False, keep="all").map(OBJECTS)
    assert [outcome.status for outcome in report] == [Status.SUCCEEDED, Status.FAILED, Status.SUCCEEDED]
    assert "'connect()' would end the transaction" in str(report.failures[0].error)
    assert set(Person.objects.using(alias).values_list("name", flat=True)) == {"a", "c"}


def test_swallowed_rollback_of_sqlite_fails_the_chunk_once(mode):
    """Its objects run again one by one, and the one that is to blame says why it cannot be saved."""
    Person(pk=1, name="there").save()

    def swallows(name):
        Person(name=name).save()
        if name == "bad":
            with suppress(Exception):
                execute("default", "INSERT OR ROLLBACK INTO tests_person (id, name) VALUES (1, 'twin')")

    operation = pooled_operation(swallows).using(executor="serial", transaction=mode, chunksize=3, progress=False)
    report = operation.map(OBJECTS)
    assert [(failure.item, failure.status) for failure in report.failures] == [("bad", Status.FAILED)]
    assert "can only be rolled back" in str(report.failures[0].error)
    assert set(Person.objects.values_list("name", flat=True)) == {"there", "a", "c"}
