"""A forked worker uses no connection of its parent and disturbs none.

Else people see "SSL error: decryption failed", or rows of another query.
"""

import concurrent.futures
import contextlib
import gc
import multiprocessing
import os
import threading

import pytest
from django.core.cache import caches
from django.db import connections, transaction

from poolsave import InsideTransaction, InvalidOperation, concurrent_saves
from poolsave._db import fork_safety as _inherited
from tests.conftest import needs_mariadb
from tests.models import Person
from tests.support import mariadb, operations

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


def server_session(alias):
    return operations.server_session(None, alias=alias)


def test_the_parent_s_session_lives_on_and_no_worker_uses_it(server, start_method):
    mine = server_session(server)
    operation = operations.server_session.bind(alias=server).using(databases=(server,), start_method=start_method)
    theirs = operation.using(chunksize=1).map(range(20)).values
    assert mine not in theirs
    assert 1 <= len(set(theirs)) <= 2
    assert server_session(server) == mine


def test_fork_keeps_the_session_of_an_alias_not_in_databases(server, start_method):
    """The open transaction on another alias stays open, with its uncommitted row."""
    with transaction.atomic(using=server):
        Person(name="uncommitted").save(using=server)
        mine = server_session(server)
        assert operations.save_person.using(start_method=start_method).map(["a", "b"]).ok
        assert server_session(server) == mine
        assert Person.objects.using(server).get().name == "uncommitted"
    assert Person.objects.using(server).count() == 1


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_session_lives_on_when_workers_are_replaced(server, method):
    with transaction.atomic(using=server):
        Person(name="uncommitted").save(using=server)
        mine = server_session(server)
        report = operations.saves_and_dies.using(start_method=method, workers=2, chunksize=2).map(
            [f"p{number}" for number in range(12)]
        )
        assert [failure.item for failure in report.failures] == ["p5"]
        assert server_session(server) == mine
        assert Person.objects.using(server).get().name == "uncommitted"


def test_threads_have_sessions_of_their_own_and_close_them(server):
    mine = server_session(server)
    operation = operations.server_session.bind(alias=server).using(databases=(server,), executor="thread")
    assert mine not in operation.map(range(10)).values
    assert server_session(server) == mine


@contextlib.contextmanager
def in_another_thread(begin, go_on):
    """Run `begin` in a thread, and `go_on` with what it gave when the body has ended; gives what that gave."""
    begun, leave = threading.Event(), threading.Event()
    found = []

    def run():
        with begin() as opened:
            begun.set()
            leave.wait(30)
            found.append(go_on(opened))

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(30)
    try:
        yield found
    finally:
        leave.set()
        thread.join()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_transaction_of_another_thread_lives_on(server, start_method):
    @contextlib.contextmanager
    def begin():
        try:
            with transaction.atomic(using=server):
                Person(name="theirs").save(using=server)
                yield server_session(server)
        finally:
            connections[server].close()

    def go_on(before):
        return before == server_session(server), Person.objects.using(server).get().name

    with in_another_thread(begin, go_on) as found:
        assert operations.save_person.using(databases=("default",), start_method=start_method).map(["a", "b"]).ok
    assert found == [(True, "theirs")]
    assert Person.objects.using(server).count() == 1


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@needs_mariadb
def test_a_connection_to_mariadb_in_another_thread_lives_on():
    """mysqlclient ends the session on the server when a forked child drops its copy, as CPython has it do there."""
    kept = threading.local()

    @contextlib.contextmanager
    def begin():
        kept.connection = mariadb.connect()
        yield kept.connection.thread_id()
        kept.connection.close()

    def go_on(before):
        with kept.connection.cursor() as cursor:
            cursor.execute("SELECT CONNECTION_ID()")
            return cursor.fetchone() == (before,)

    with in_another_thread(begin, go_on) as found:
        assert operations.save_person.using(start_method="fork").map(["a", "b"]).ok
    assert found == [True]


def test_serial_uses_the_caller_s_session(server):
    mine = server_session(server)
    operation = operations.server_session.bind(alias=server).using(databases=(server,), executor="serial")
    assert set(operation.map(range(3)).values) == {mine}


def in_a_forked_child(check):
    """Run `check` in a fork of this process and give its exit status."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if check() else 1)
        except BaseException:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_child_drops_connections_without_closing_them(server):
    """It does not finalise them, either."""
    mine = server_session(server)
    wrapper = connections[server]
    raw = wrapper.connection

    def check():
        _inherited.discard_inherited_connections()
        gc.collect()
        anew = connections[server]
        return anew is not wrapper and anew.connection is None and wrapper.connection is raw

    assert in_a_forked_child(check) == 0
    assert server_session(server) == mine


def test_a_child_forgets_cache_clients():
    client = caches["default"]
    assert in_a_forked_child(lambda: _inherited.discard_inherited_connections() or caches["default"] is not client) == 0
    assert caches["default"] is client


def test_wrappers_of_other_threads_are_held_before_a_fork():
    entered, leave = threading.Event(), threading.Event()
    theirs = []

    def hold_one():
        theirs.append(connections["postgres"])
        entered.set()
        leave.wait(30)
        connections["postgres"].close()

    thread = threading.Thread(target=hold_one)
    thread.start()
    entered.wait(30)
    try:
        assert any(held is theirs[0] for held in _inherited.pin_connections())
    finally:
        leave.set()
        thread.join()


def test_workers_keep_their_connection_but_do_not_pool(start_method):
    for alias in ("pooled", "postgres", "mariadb"):
        if alias in connections:
            facts = (
                operations.connection_facts.bind(alias=alias)
                .using(databases=(alias,), start_method=start_method)
                .map([1])
            )
            assert facts.values[0]["pool"] is None
            assert facts.values[0]["in_atomic_block"]


@pytest.mark.skipif("pooled" not in connections, reason="Django pools connections with psycopg 3 only")
def test_the_parent_s_pool_survives_a_fork():
    with connections["pooled"].cursor() as cursor:
        cursor.execute("SELECT 1")
    pool = connections["pooled"].pool
    try:
        operation = operations.save_person.bind(alias="pooled")
        names = [f"p{number}" for number in range(10)]
        assert operation.using(databases=("pooled",), start_method="fork").map(names).ok
        assert connections["pooled"].pool is pool
        with connections["pooled"].cursor() as cursor:
            cursor.execute("SELECT count(*) FROM tests_person")
            assert cursor.fetchone() == (10,)
    finally:
        connections["pooled"].close_pool()


def test_sqlite_transactions_begin_immediate(pool):
    facts = operations.connection_facts.using(**pool).map([1]).values[0]
    assert facts["mode"] == (None if pool.get("executor") == "serial" else "IMMEDIATE")


def test_a_transaction_mode_of_the_project_is_kept(settings):
    options = connections["default"].settings_dict["OPTIONS"]
    options["transaction_mode"] = "DEFERRED"
    try:
        assert operations.connection_facts.using(start_method="fork").map([1]).values[0]["mode"] == "DEFERRED"
    finally:
        del options["transaction_mode"]


def test_sqlite_rows_survive_a_file_that_the_parent_had_open():
    """SQLite's locks are per process: a child that inherits them commits rows that then vanish."""
    assert Person.objects.count() == 0
    with concurrent_saves(workers=2, start_method="fork", databases=("default",)) as saves:
        futures = []
        for number in range(150):
            futures.append(saves.submit(operations.save_person, f"p{number}"))
            if number % 50 == 49:
                for future in futures:
                    future.result(30)
                assert Person.objects.count() == number + 1
                connections["default"].close()
    assert Person.objects.count() == 150


def test_sqlite_rows_are_there_after_a_worker_was_replaced():
    assert Person.objects.count() == 0

    def names():
        for number in range(60):
            assert Person.objects.count() >= 0  # the parent opens the file in the middle of the run
            yield f"p{number}"
            if number % 20 == 19:
                connections["default"].close()

    report = operations.saves_and_dies.using(start_method="fork", chunksize=2, workers=2).map(names())
    assert [failure.item for failure in report.failures] == ["p5"]
    assert Person.objects.count() == 59


def test_open_transaction_on_any_sqlite_file_prevents_fork():
    with transaction.atomic(using="second"):
        Person(name="mine").save(using="second")
        with pytest.raises(InsideTransaction, match="second"):
            operations.save_person.using(start_method="fork").map(["a"])
        assert operations.save_person.map(["a"]).ok  # by the fork server
    assert Person.objects.using("second").count() == 1


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_pool_of_the_caller_with_an_open_file_is_refused():
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        Person.objects.count()
        executor.submit(pow, 2, 3).result()
        with pytest.raises(InvalidOperation, match="was open"):
            operations.save_person.using(executor=executor).map(["a"])
    assert Person.objects.count() == 0


def test_workers_have_cache_clients_and_pools_of_their_own(start_method):
    client = caches["default"]
    found = operations.cache_and_pools.using(databases=("postgres",), start_method=start_method).map([1, 2]).values
    assert all(identity != id(client) for identity, _pools in found) or start_method != "fork"
    assert [pools for _identity, pools in found] == [0, 0]


@pytest.mark.skipif("pooled" not in connections, reason="Django pools connections with psycopg 3 only")
def test_workers_forget_the_caller_s_pool():
    with connections["pooled"].cursor() as cursor:
        cursor.execute("SELECT 1")
    try:
        found = operations.cache_and_pools.using(databases=("postgres",), start_method="fork").map([1]).values
        assert [pools for _identity, pools in found] == [0]
    finally:
        connections["pooled"].close_pool()


def test_two_threads_can_look_for_what_must_not_cross_at_once():
    """Each finds what the other is gathering at that moment among all objects."""
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        found = [executor.submit(_inherited.pin_connections) for _ in range(20)]
    assert all(isinstance(one.result(), tuple) for one in found)
