"""No lock of a session outlives the object that took it and failed."""

import pytest
from django.db import connections

from poolsave import pooled_operation
from tests.support import operations

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")

LOCK = {"postgresql": "SELECT pg_advisory_lock(1)", "mysql": "SELECT GET_LOCK('one', 1)"}
IS_HELD = {
    "postgresql": "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    "mysql": "SELECT IS_USED_LOCK('one') IS NOT NULL",
}


def run(server, **options):
    """The first object takes a lock and fails with a database error, the second one says whether it is still held."""

    def locks_or_looks(name):
        if name == "looks":
            return operations.ask(server, **IS_HELD)
        operations.ask(server, **LOCK)
        with connections[server].cursor() as cursor:
            return cursor.execute("SELECT nothing FROM nowhere")

    operation = pooled_operation(locks_or_looks, workers=1, databases=(server,), progress=False, **options)
    return operation.map(["fails", "looks"])


@pytest.mark.parametrize(
    "options",
    [
        {"executor": "thread", "chunksize": 1},
        {"executor": "thread", "chunksize": 2},
        {"start_method": "fork", "chunksize": 1},
        {"executor": "thread", "chunksize": 1, "transaction": None},
    ],
    ids=str,
)
def test_a_lock_of_what_failed_is_released_at_once(server, options):
    report = run(server, **options)
    assert (report.failed, report.values) == (1, [0])


def test_a_lock_of_what_failed_is_released_after_its_chunk(server):
    def locks_or_looks(name):
        if name == "looks":
            return operations.ask(server, **IS_HELD)
        if name == "fails":
            operations.ask(server, **LOCK)
            raise ValueError(name)
        return None

    operation = pooled_operation(locks_or_looks, executor="thread", workers=1, databases=(server,), progress=False)
    report = operation.using(transaction="chunk", chunksize=2).map(["fails", "a", "looks", "b"])
    assert (report.failed, report.values) == (1, [None, 0, None])


def test_locks_of_the_caller_s_own_connection_stay(server):
    with connections[server].cursor() as cursor:
        cursor.execute(LOCK[connections[server].vendor])
        cursor.fetchone()
    report = run(server, executor="serial", chunksize=1)
    assert (report.failed, report.values != [0]) == (1, True)
    connections[server].close()
