"""A run waits for a standby that is behind or gone, and for none that has everything."""

import os
import signal
import threading
import time
from datetime import UTC, datetime

import pytest
from django.db import connections

import poolsave
from poolsave import InvalidOption, pooled_operation
from poolsave.ledger.models import Chunk, Failure, Lease, Run
from poolsave.throttles import ReplicaLag
from poolsave.throttles._reading import Heartbeats, RunView
from tests.conftest import needs_mariadb, wait_until
from tests.support import operations
from tests.support.standby import Standby, aliases

LEDGER = (Run, Lease, Chunk, Failure)
START = "INSERT INTO work (id) VALUES (%s)"
SOFT, HARD = 0.5, 1.0
TOLERANCE = 2.0
"""Seconds: so late a run may notice that the standby is behind, or is so no longer."""


@pytest.fixture(scope="module")
def servers(private_server):
    """A primary and its standby, both running."""
    with private_server.connected() as cursor:
        cursor.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")  # tests before have left their tables
        cursor.execute("CREATE TABLE work (id int, at timestamptz DEFAULT clock_timestamp())")
    standby = Standby(private_server)
    yield private_server, standby
    standby.delete()
    with private_server.connected() as cursor:
        cursor.execute("DROP TABLE work")


@pytest.fixture
def standby(servers, django_db_blocker):
    primary, standby = servers
    standby.start()  # unless it runs
    with django_db_blocker.unblock(), aliases(primary=primary, standby=standby):
        wait_until(lambda: standby.follows(primary), seconds=30)
        yield standby


@pytest.fixture
def quick_looks(looks_every):
    looks_every(0.1)


@pooled_operation(workers=2, progress=False, databases=["primary"], executor="thread", chunksize=1)
def works(number):
    with connections["primary"].cursor() as cursor:
        cursor.execute(START, [number])
    time.sleep(0.01)


class Plan:
    """A throttle that slows nothing: once a second the run asks it, and it does what is due at that time."""

    def __init__(self, *steps):
        self._steps = list(steps)
        self.done = []
        self._began = time.monotonic()

    def __call__(self):
        if self._steps and time.monotonic() - self._began >= self._steps[0][0]:
            _seconds, step = self._steps.pop(0)
            step()
            self.done.append(time.time())


def starts(servers):
    """When each object began, by the clock of this machine, which is that of the server."""
    with servers[0].connected() as cursor:
        cursor.execute("SELECT extract(epoch FROM at)::float8 FROM work ORDER BY at")
        return [row[0] for row in cursor.fetchall()]


def numbers_until(ended):
    number = 0
    while not ended.is_set():
        yield (number := number + 1)


def paced(seconds, count):
    """An input that is slow, and writes nothing."""
    for number in range(count):
        time.sleep(seconds)
        yield number


def test_nothing_starts_while_replay_is_behind(servers, standby):
    ended = threading.Event()
    due = 1 + HARD + TOLERANCE
    plan = Plan((1, standby.pause), (due, standby.resume), (due + 2, ended.set))
    report = works.using(throttle=[plan, ReplicaLag("standby", soft=SOFT, hard=HARD)]).map(numbers_until(ended))
    paused_at, resumed_at, _ended_at = plan.done
    before = [start for start in starts(servers) if start < resumed_at]
    after = [start for start in starts(servers) if start > resumed_at]
    assert paused_at + SOFT < before[-1] < paused_at + HARD + TOLERANCE  # not at once, but in time
    assert after[0] - resumed_at < TOLERANCE
    (throttled,) = report.throttled
    assert "the replica 'standby' is" in throttled.reason
    assert throttled.held > resumed_at - before[-1] - 1


def test_an_idle_primary_slows_nothing(standby, quick_looks):
    lag = ReplicaLag("standby", soft=0.1, hard=0.2, primary="primary")
    report = operations.doubles.using(executor="serial", throttle=lag).map(paced(0.1, 15))
    assert report.ok
    assert report.throttled == ()


def test_a_killed_standby_holds_the_run(standby, quick_looks):
    looks = []

    def kill_and_interrupt():
        looks.append(None)
        if len(looks) == 3:
            standby.kill()
        elif len(looks) == 10:
            os.kill(os.getpid(), signal.SIGINT)

    throttle = [kill_and_interrupt, ReplicaLag("standby", soft=50, hard=100, primary="primary")]
    with pytest.raises(KeyboardInterrupt) as caught:
        operations.doubles.using(executor="serial", throttle=throttle).map(paced(0.01, 1000))
    (throttled,) = caught.value.report.throttled
    assert throttled.held > 0.2
    assert "ReplicaLag('standby', soft=50, hard=100, primary='primary') can no longer be read" in throttled.reason


@pytest.fixture
def primary_with_ledger(servers, standby):
    with connections["primary"].schema_editor() as editor:
        for model in LEDGER:
            editor.create_model(model)
    yield servers[0]
    with connections["primary"].schema_editor() as editor:
        for model in LEDGER:
            editor.delete_model(model)


def test_a_durable_run_pauses_when_it_loses_patience(primary_with_ledger, standby, quick_looks):
    run = poolsave.Run("throttled", using="primary", key=str)
    operation = works.using(transaction="object")
    wait_until(lambda: standby.follows(primary_with_ledger))
    standby.pause()
    lag = ReplicaLag("standby", soft=0.2, hard=0.6)
    report = operation.using(throttle=lag, patience=0.3).map(range(100_000), run=run)
    standby.resume()
    row = Run.objects.using("primary").get(name="throttled")
    assert (row.status, row.stop_code, row.throttle) == ("paused", "throttle", "")
    assert "throttles let nothing start for 0.3 s (patience): the replica 'standby' is" in row.stop_reason
    assert 0 < row.done == report.succeeded < 100_000
    wait_until(lambda: standby.follows(primary_with_ledger))
    again = operation.using(throttle=lag, max_failures=1).map(paced(0.01, row.done + 10), run=run)
    assert again.succeeded == 10


def test_a_durable_run_goes_by_its_heartbeats(primary_with_ledger, servers, standby):
    try:
        run = Run.objects.using("primary").create(name="run")
        heartbeats = Heartbeats(Run.objects.filter(pk=run.pk).values_list("heartbeat_at"), "primary")
        run_view = RunView(databases=("primary",), heartbeats=heartbeats)
        reads = ReplicaLag("standby", soft=0.3, hard=1)._for_run(run_view)
        beat(run, heartbeats)
        wait_until(lambda: standby.follows(servers[0]))
        assert reads()[0] == 1.0
        standby.pause()
        paused_at = time.monotonic()
        while reads()[0]:
            beat(run, heartbeats)
            assert time.monotonic() - paused_at < 5
        assert time.monotonic() - paused_at > 0.8
        standby.resume()
        wait_until(lambda: reads()[0] == 1.0)
    finally:
        standby.resume()


def beat(run, heartbeats):
    run.heartbeat_at = datetime.now(UTC)
    run.save(update_fields=["heartbeat_at"])
    heartbeats.wrote(run.heartbeat_at)


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_a_heartbeat_is_read_on_each_kind_of_server(server):
    """What arrives at the replica is written here by hand."""
    row = Run.objects.using(server).filter(pk=Run.objects.using(server).create(name="run").pk)
    heartbeats = Heartbeats(row.values_list("heartbeat_at"), "second")
    lag = ReplicaLag(server, soft=10, hard=20, primary="second")
    reads = lag._for_run(RunView(heartbeats=heartbeats))
    first = datetime.now(UTC)
    row.update(heartbeat_at=first)
    heartbeats.wrote(first)
    assert reads() == (1.0, f"the replica {server!r} is 0.0 s behind (soft=10, hard=20)")
    second = datetime.now(UTC)
    heartbeats.wrote(second)
    time.sleep(0.1)
    assert "is 0.0 s" not in reads()[1]
    row.update(heartbeat_at=second)
    assert "is 0.0 s" in reads()[1]


@needs_mariadb
@pytest.mark.django_db(transaction=True, databases="__all__")
def test_mariadb_is_for_durable_runs():
    lag = ReplicaLag("mariadb", primary="postgres")
    with pytest.raises(InvalidOption, match="on MariaDB it needs a durable run with its ledger on 'postgres'"):
        operations.doubles.using(executor="serial", throttle=lag).map([1])


@pytest.mark.chaos
def test_a_primary_that_idles_for_a_minute_slows_nothing(standby):
    lag = ReplicaLag("standby", soft=0.2, hard=1, primary="primary")
    report = operations.doubles.using(executor="serial", throttle=lag).map(paced(0.25, 240))
    assert (report.succeeded, report.throttled) == (240, ())


def test_what_is_no_replica_is_told_of_once(standby, quick_looks):
    lag = ReplicaLag("primary", primary="standby")
    with pytest.warns(RuntimeWarning, match="cannot be read, and so does not slow this run down") as warnings:
        report = operations.doubles.using(executor="serial", throttle=lag).map(paced(0.1, 6))
    assert report.ok
    assert len(warnings) == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"replica": 1}, "replica=1 is not valid: give the alias"),
        ({"replica": "standby", "soft": -1}, "soft=-1 is not valid: give seconds from 0"),
        ({"replica": "standby", "soft": 2, "hard": 2}, "hard=2 is not valid: give more seconds than soft=2"),
        ({"replica": "standby", "hard": float("nan")}, "hard=nan is not valid: give seconds from 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, complaint):
    with pytest.raises(InvalidOption, match=complaint):
        ReplicaLag(**arguments)


@pytest.mark.parametrize(
    ("lag", "complaint"),
    [
        (ReplicaLag("elsewhere"), "replica='elsewhere' is not valid: settings.DATABASES has only"),
        (ReplicaLag("second"), "replica='second' is not valid: it is for PostgreSQL and MariaDB"),
        (ReplicaLag("postgres", primary="postgres"), "the run writes to it"),
    ],
)
def test_wrong_aliases_are_refused_by_the_run(lag, complaint):
    with pytest.raises(InvalidOption, match=complaint):
        operations.doubles.using(executor="serial", throttle=lag).map([1])
