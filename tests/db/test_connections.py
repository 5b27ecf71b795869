"""Between chunks a connection that is lost, too old or left in a transaction is closed, so that a long run goes on."""

import time

import pytest
from django.db import connections

from poolsave._db.connections import ConnectionMaintenance
from tests.models import Person
from tests.support import operations

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


@pytest.mark.parametrize("executor", ["process", "thread"])
def test_session_lost_unseen_is_not_used_for_the_next_chunk(server, executor):
    operation = operations.outlives_its_session.using(executor=executor, workers=1, chunksize=1)
    report = operation.bind(alias=server).map(range(6))
    report.raise_if_failed()
    assert len(set(report.values)) == 6


def test_expired_connection_is_closed_between_chunks(server):
    """It is not looked at after every chunk, but only once a while has passed."""
    connection = connections[server]
    edge = ConnectionMaintenance()
    for due in (True, False, True):
        connection.ensure_connection()
        connection.close_at = time.monotonic() - 1
        edge._checked_at = time.perf_counter() - (1 if due else -1000)
        edge.after_chunk(had_errors=False)
        assert (connection.connection is None) == due


def test_trouble_is_reason_enough_to_look(server):
    connection = connections[server]
    edge = ConnectionMaintenance()
    edge._checked_at = time.perf_counter() + 1000  # not because it is time to
    connection.ensure_connection()
    connection.close_at = time.monotonic() - 1
    edge.after_chunk(had_errors=True)
    assert connection.connection is None


def test_connection_health_is_checked_anew_after_every_chunk(server):
    connection = connections[server]
    edge = ConnectionMaintenance()
    edge._checked_at = time.perf_counter() + 1000
    connection.ensure_connection()
    connection.health_check_done = True
    edge.after_chunk(had_errors=False)
    assert not connection.health_check_done


@pytest.mark.parametrize("executor", ["process", "thread"])
def test_open_transaction_of_the_function_is_rolled_back(server, executor):
    operation = operations.leaves_autocommit_off.using(executor=executor, workers=1, chunksize=1)
    assert operation.bind(alias=server).map(["a", "b", "c"]).ok
    assert Person.objects.using(server).count() == 0


def test_connection_that_replaced_another_is_maintained(server):
    edge = ConnectionMaintenance()
    before = connections[server]
    connections[server] = before.copy()
    try:
        edge._checked_at = 0.0
        edge.after_chunk(had_errors=False)
        assert connections[server] in edge._known
        assert before not in edge._known
    finally:
        connections[server] = before
