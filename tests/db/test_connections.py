"""What people see when nobody does: "the connection is closed" for the rest of a long run."""

import time

import pytest
from django.db import connections

from poolsave._db.connections import ConnectionMaintenance
from tests.models import Person
from tests.support import operations

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


@pytest.mark.parametrize("executor", ["process", "thread"])
def test_a_session_that_was_lost_unseen_is_not_handed_to_the_next_chunk(server, executor):
    operation = operations.outlives_its_session.using(executor=executor, workers=1, chunksize=1)
    report = operation.bind(alias=server).map(range(6))
    report.raise_if_failed()
    assert len(set(report.values)) == 6


def test_a_connection_that_is_too_old_is_closed_sooner_or_later_and_without_a_look_at_every_chunk(server):
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


def test_a_connection_is_asked_again_whether_it_lives_after_every_chunk(server):
    connection = connections[server]
    edge = ConnectionMaintenance()
    edge._checked_at = time.perf_counter() + 1000
    connection.ensure_connection()
    connection.health_check_done = True
    edge.after_chunk(had_errors=False)
    assert not connection.health_check_done


@pytest.mark.parametrize("executor", ["process", "thread"])
def test_what_was_left_in_a_transaction_of_a_function_s_own_is_rolled_back(server, executor):
    operation = operations.leaves_autocommit_off.using(executor=executor, workers=1, chunksize=1)
    assert operation.bind(alias=server).map(["a", "b", "c"]).ok
    assert Person.objects.using(server).count() == 0


def test_a_connection_that_was_put_in_the_place_of_another_is_looked_at(server):
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
