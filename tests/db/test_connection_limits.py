"""A server that has no more connections to give costs a run that grows no object."""

import itertools

import pytest

from poolsave._db.connections import worker_settings
from poolsave._db.inspection import room_for_workers
from poolsave._engine.sizing import WorkerSizing
from poolsave._engine.worker_policy import WorkerPolicy
from poolsave._worker.job import WorkerJob
from tests.db.conftest import LIMIT
from tests.models import Badge, Person
from tests.support import crashing, operations

SLOW_INSERTS = [
    "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.01); RETURN NULL; END $$",
    "CREATE TRIGGER dawdle AFTER INSERT ON tests_person FOR EACH ROW EXECUTE FUNCTION dawdle()",
]
"""For each person a worker waits for 10 ms."""


@pytest.mark.django_db(transaction=True, databases=["default", "postgres"])
@pytest.mark.parametrize("executor", ["thread", "process"])
def test_workers_without_a_connection_cost_no_object(limited, monkeypatch, executor):
    """The answer of the server is old by the time that they connect."""
    monkeypatch.setattr(WorkerJob, "room_for_workers", lambda _job: None)
    monkeypatch.setattr(WorkerPolicy, "after", wants_nine)
    monkeypatch.setattr(WorkerSizing, "_is_complete", property(lambda sizing: bool(sizing._answered)))
    saved = operations.save_person.using(
        executor=executor, workers=(1, 9), chunksize=1, databases=("postgres",), start_method=None
    ).bind(alias="postgres")
    names = itertools.count()
    report = saved.map(f"p{number}" for number in itertools.takewhile(lambda number: number < 200, names))
    assert report.succeeded == 200
    assert [change.workers for change in report.statistics.resizings] == [LIMIT]
    assert Person.objects.using("postgres").count() == Badge.objects.using("postgres").count() == 200
    assert f"1, then {LIMIT} from object" in str(report)
    assert "since the server has no more connections to give" in str(report)


def wants_nine(policy, window):
    return policy._on_trial(window, 9, "") if policy.workers == 1 else policy


@pytest.mark.django_db(transaction=True, databases=["default", "postgres"])
def test_room_is_half_of_what_is_free(limited):
    settings = worker_settings(own_transactions=["postgres"])
    assert room_for_workers(["postgres"], settings) == LIMIT // 2


@pytest.mark.django_db(transaction=True, databases=["postgres", "default"])
def test_sqlite_has_room_for_no_more():
    settings = worker_settings(own_transactions=["postgres"])
    assert room_for_workers(["default", "postgres"], settings) == 0
    assert room_for_workers([], settings) is None


@pytest.mark.exhaustive  # a server of its own takes long to start
def test_a_server_with_few_slots_is_never_filled(tmp_path):
    server = crashing.new_server()
    try:
        with server.connected() as cursor:
            cursor.execute("ALTER SYSTEM SET max_connections = 12")
        server.crash()
        server.start()
        options = {"workers": "auto", "chunksize": 1, "executor": "process"}
        with crashing.Run(server, tmp_path, after=SLOW_INSERTS, **options) as run:
            run.wait_for(lambda: len(run.workers()) >= 5)
            with server.connected():  # as other programs want to
                outcomes, found = run.end()
    finally:
        server.delete()
    assert {status for _name, status, *_error in outcomes} == {"succeeded"}
    assert len(found.rows) == len(outcomes)
