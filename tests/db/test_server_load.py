"""A run waits while a server is at work for others, and never for its own queries."""

import threading
import time
from contextlib import contextmanager

import pytest
from django.db import OperationalError, connections

from poolsave import InvalidOption, concurrent_saves, pooled_operation
from poolsave.throttles import ServerLoad
from poolsave.throttles._reading import look_at, row_of
from tests.conftest import wait_until
from tests.models import Person
from tests.support import operations

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")
SLEEP = {"postgresql": "SELECT pg_sleep(%s)", "mysql": "SELECT SLEEP(%s)"}


def sleep_on(alias, seconds):
    with connections[alias].cursor() as cursor:
        cursor.execute(SLEEP[connections[alias].vendor], [seconds])


@pooled_operation(transaction=None, workers=3, progress=False, chunksize=1)
def sleeps_there(seconds, alias):
    sleep_on(alias, seconds)


@contextmanager
def others(alias, count, seconds):
    """Sessions of others that run one query each, for so long."""

    def run():
        try:
            sleep_on(alias, seconds)
        finally:
            connections[alias].close()

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    load = ServerLoad(running=count, using=alias)
    try:
        wait_until(lambda: load() is not None)
        yield
    finally:
        for thread in threads:
            thread.join()


@pytest.fixture(autouse=True)
def _quick_looks(looks_every):
    looks_every(0.1)


def test_a_run_waits_while_others_run_queries(server):
    with others(server, 2, 0.8):
        began = time.monotonic()
        load = ServerLoad(running=2, using=server)
        report = operations.doubles.using(executor="serial", throttle=load).map(range(3))
        assert time.monotonic() - began > 0.2
    (row,) = report.throttled
    assert row.reason == f"{server!r} runs 2 other queries (running=2)"
    assert report.ok


def test_fewer_queries_of_others_slow_nothing(server):
    with others(server, 1, 0.5):
        report = operations.doubles.using(executor="serial", throttle=ServerLoad(running=2, using=server)).map(range(3))
    assert report.throttled == ()


@pytest.mark.parametrize("options", [{"executor": "thread"}, {"executor": "process", "start_method": "fork"}])
def test_its_own_queries_do_not_count(server, options):
    load = ServerLoad(running=2)  # of its three at once, one may begin or end just as it is counted
    report = (
        sleeps_there.using(**options, databases=[server], throttle=load).bind(alias=server).map([0.1, 0.3, 0.5] * 3)
    )
    assert report.ok
    assert report.throttled == ()


def test_a_look_ends_a_statement_that_takes_long(server):
    began = time.monotonic()
    with pytest.raises(OperationalError), look_at(server) as connection:
        row_of(connection, SLEEP[connection.vendor], [20])
    assert time.monotonic() - began < 10
    assert connection.connection is None


def test_a_block_leaves_no_connection_of_a_throttle(server):
    def asks():
        return None if Person.objects.using(server).count() else 1.0

    options = {"executor": "thread", "transaction": None, "progress": False, "throttle": asks}
    with concurrent_saves(**options) as saves:
        assert saves.submit(operations.doubles.func, 2).result() == 4


def test_a_database_without_a_server_is_refused():
    with pytest.raises(InvalidOption, match="using='default' is not valid: it is for PostgreSQL and MariaDB"):
        operations.doubles.using(executor="serial", throttle=ServerLoad(running=1)).map([1])


@pytest.mark.parametrize("running", [0, -1, 1.5, "20", True, None])
def test_a_number_of_queries_that_is_none_is_refused(running):
    with pytest.raises(InvalidOption, match="give a whole number of queries from 1"):
        ServerLoad(running=running)
