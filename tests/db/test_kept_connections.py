"""A connection that a module keeps is used by no worker: each object that tries fails, and says why."""

import asyncio
import concurrent.futures
import importlib.util
import os
import socket
import sqlite3
from contextlib import closing

import pytest
from django.db import DatabaseError, connections, transaction

from poolsave import InsideTransaction, InvalidOperation, pooled_operation
from poolsave._db.connections import refused, worker_connections, worker_settings
from poolsave._db.fork_safety import NOT_YOURS
from tests.models import Person
from tests.support import operations

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")
INSERT = "INSERT INTO tests_person (name) VALUES (%s)"
FORK = {"workers": 2, "chunksize": 3, "start_method": "fork", "progress": False}


@pytest.fixture(autouse=True)
def columns():
    """Those that an insertion past Django has to give."""
    global INSERT
    fields = [field for field in Person._meta.concrete_fields if not field.primary_key]
    others = [field.column for field in fields if field.column != "name" and not field.null and field.has_default()]
    values = "".join(f", {Person._meta.get_field(name).get_default()!r}" for name in others)
    INSERT = f"INSERT INTO tests_person (name{''.join(f', {name}' for name in others)}) VALUES (%s{values})"


def insert_by(cursor):
    """An operation that knows no other connection than that of its cursor."""

    @pooled_operation(**FORK)
    def insert(name):
        cursor.execute(INSERT, [name])
        if name == "bad":
            raise ValueError(name)

    return insert


@pytest.mark.parametrize("mode", ["object", "chunk", None])
def test_kept_cursor_fails_each_object(server, mode):
    with connections[server].cursor() as cursor:
        cursor.execute("SELECT 1")
        report = insert_by(cursor).using(transaction=mode, databases=(server,)).map(["a", "bad", "c", "d"])
        assert [type(one.error) for one in report.failures] == [InvalidOperation] * 4
        assert "was opened before the worker began" in str(report.failures[0].error)
        cursor.execute("SELECT 2")
        assert cursor.fetchone() == (2,)
    assert not Person.objects.using(server).exists()


def test_kept_driver_connection_fails_each_object(server):
    """Of which Django knows nothing, as of those in a backend's own pool."""
    wrapper = connections[server]
    with closing(wrapper.get_new_connection(wrapper.get_connection_params())) as raw, raw.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert len(cursor.fetchall()) == 1
        report = insert_by(cursor).using(databases=(server,), retries=0).map(["a", "bad", "c", "d"])
        assert report.failed == 4
        if server == "postgres" and importlib.util.find_spec("psycopg"):  # psycopg2 tells of a lost connection
            assert NOT_YOURS in str(report.failures[0].error)
        cursor.execute("SELECT 2")
        assert cursor.fetchall()[0] == (2,)
        raw.rollback()
    assert not Person.objects.using(server).exists()


def test_refusal_within_another_leaves_the_outer_one():
    wrapper = connections["default"]
    with refused(wrapper):
        with refused(wrapper):
            pass
        with pytest.raises(InvalidOperation), wrapper.wrap_database_errors:
            pass
    with wrapper.wrap_database_errors:
        pass


def test_sockets_of_the_caller_go_on_blocking():
    """Also under a default time-out, with which Python makes each socket that it looks at non-blocking, for all."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(True)
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(5)
        try:
            report = pooled_operation(str).using(**FORK, transaction=None).map([1, 2])
        finally:
            socket.setdefaulttimeout(before)
        assert report.ok
        assert os.get_blocking(ours.fileno())


def test_kept_cursor_of_the_caller_fails_in_threads(alias):
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
        report = insert_by(cursor).using(executor="thread", start_method=None, databases=(alias,)).map(["a", "bad"])
        assert [type(one.error) for one in report.failures] == [DatabaseError] * 2
        cursor.execute("SELECT 2")
        assert cursor.fetchone() == (2,)
    assert not Person.objects.using(alias).exists()


@pytest.mark.parametrize("mode", ["object", "chunk", None])
@pytest.mark.parametrize("executor", ["serial", "thread"])
def test_caller_s_connection_is_left_as_it_was(executor, mode, alias):
    """Its attributes, its driver's class, and what Django enters around the driver's calls."""
    state = state_of(connections[alias])
    operation = operations.save_person.bind(alias=alias)
    operation = operation.using(executor=executor, transaction=mode, databases=(alias,), chunksize=3, progress=False)
    assert operation.check(["a"]) == []
    operation.map(["a", "b", "c"])
    assert state_of(connections[alias]) == state


def state_of(connection):
    connection.ensure_connection()
    own = {name for name, value in vars(connection).items() if callable(value)}
    return type(connection.connection), connection.wrap_database_errors, own, len(connection.execute_wrappers)


def test_cursor_of_an_import_fails_while_a_worker_is_open(alias):
    """In a worker that was not forked, a module that it imports may have opened one before."""
    with connections[alias].cursor() as cursor:
        with worker_connections(worker_settings(own_transactions=()), whole_process=False):
            with pytest.raises(InvalidOperation, match="before the worker began"):
                cursor.execute("SELECT 1")
            with connections[alias].cursor() as own:
                own.execute("SELECT 1")
        cursor.execute("SELECT 2")
        assert cursor.fetchone() == (2,)


@pytest.fixture
def open_file():
    """SQLite's file, open past Django."""
    Person.objects.exists()
    with closing(sqlite3.connect(connections["default"].settings_dict["NAME"])) as connection:
        yield connection


def test_fork_with_a_kept_sqlite_file_is_refused(open_file):
    with pytest.raises(InvalidOperation, match='close it there, or use start_method="forkserver"'):
        operations.save_person.using(start_method="fork").map(["a"])
    assert operations.save_person.map(["b"]).ok  # by the fork server
    assert open_file.execute("SELECT name FROM tests_person").fetchall() == [("b",)]


def test_fork_with_a_sqlite_file_of_another_thread_is_refused():
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        executor.submit(Person.objects.exists).result()
        with pytest.raises(InvalidOperation, match="is open in another thread"):
            operations.save_person.using(start_method="fork").map(["a"])
        executor.submit(connections.close_all).result()


def test_sqlite_file_is_closed_before_a_fork_in_an_event_loop():
    Person.objects.exists()

    async def main():
        return operations.save_person.using(start_method="fork").map(["a", "b"])

    assert asyncio.run(main()).ok
    assert Person.objects.count() == 2


def test_transaction_around_an_event_loop_is_refused(server):
    async def main():
        return operations.save_person.bind(alias=server).using(databases=(server,)).map(["a"])

    with transaction.atomic(using=server), pytest.raises(InsideTransaction, match=server):
        asyncio.run(main())
