"""By default there are more workers while they wait for the server, and fewer when it has too much to do."""

import hashlib
import itertools
import statistics
import time

import pytest
from django.db import connections

from poolsave import concurrent_saves, options, pooled_operation
from poolsave._engine.worker_policy import FEWEST, OVERLOADED, SPARE
from poolsave.options import available_cpus
from tests.benchmarks import proxy
from tests.db.conftest import LIMIT
from tests.db.test_connection_limits import SLOW_INSERTS
from tests.models import Person

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "postgres"])


@pytest.fixture
def slow_inserts(transactional_db):
    with connections["postgres"].cursor() as cursor:
        for statement in SLOW_INSERTS:
            cursor.execute(statement)
    yield
    with connections["postgres"].cursor() as cursor:
        cursor.execute("DROP FUNCTION dawdle CASCADE")


@pooled_operation(progress=False, databases=("postgres",))
def saves_unless_told(name):
    """What takes too long is ended by the server."""
    with connections["postgres"].cursor() as cursor:
        if name.startswith("slow"):
            cursor.execute("SET LOCAL statement_timeout = '5ms'")
            cursor.execute("SELECT pg_sleep(10)")
    Person(name=name).save(using="postgres")


@pytest.mark.parametrize("executor", ["thread", "process", "auto"])
def test_workers_that_wait_become_more_and_then_fewer(slow_inserts, executor):
    told = ["fast"]
    names = (f"{told[0]} {number}" for number in itertools.count())
    growing = saves_unless_told.using(executor=executor, workers=(2, 9), window=100)
    statuses = {}
    with growing.stream(names) as outcomes:
        resizings = outcomes.report.statistics.resizings
        for outcome in outcomes:
            statuses[outcome.item] = outcome.ok
            told[0] = "slow" if resizings and resizings[-1].workers > 2 else "fast"
            if resizings and resizings[-1].reason == OVERLOADED:
                break
    assert resizings[0].workers > 2
    assert resizings[0].reason.startswith("since they waited for ")
    assert resizings[-1].workers < resizings[-2].workers
    assert all(ok == item.startswith("fast") for item, ok in statuses.items())
    assert f"workers: 2, then {resizings[0].workers} from object {resizings[0].index}, since" in str(outcomes.report)
    assert len(outcomes.report.statistics.workers) >= resizings[0].workers


@pooled_operation(progress=False, transaction=None, databases=("postgres",))
def hashes(number):
    """Computes without Python's lock, as the hash of a password does, and gives the share of a CPU that it had."""
    began, used = time.perf_counter(), time.thread_time()
    hashlib.pbkdf2_hmac("sha256", b"password", str(number).encode(), 4000)
    return (time.thread_time() - used) / (time.perf_counter() - began)


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_workers_that_compute_get_no_others_beside_them(executor):
    """On a machine that is busy with other things they do not have the CPUs, and may become more."""
    report = hashes.using(executor=executor).map(range(1000))
    assert report.ok
    changes = report.statistics.resizings
    shares = [statistics.mean(report.values[: change.index]) for change in changes]
    assert all(share < 0.9 for share in shares[:1])
    for change, share in zip(changes, shares, strict=True):
        assert change.workers <= max(FEWEST, 1.5 * SPARE * available_cpus() / share)


@pooled_operation(progress=False, databases=("postgres",))
def has_the_server_compute(number):
    with connections["postgres"].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM generate_series(1, 30000)")


def test_workers_whose_server_computes_here_get_no_others(server_process):
    """They themselves wait for nearly all of their time."""
    report = has_the_server_compute.map(range(400))
    assert report.ok
    assert max([change.workers for change in report.statistics.resizings], default=0) <= 2 * available_cpus()


@pytest.fixture
def far(monkeypatch, tmp_path):
    """The alias "postgres" leads to the same server, 2 ms away each way."""
    settings = connections["postgres"].settings_dict
    with proxy.far(settings, tmp_path / "far", 0.002):
        connections["postgres"].close()
        for key, value in {"HOST": str(tmp_path / "far"), "PORT": ""}.items():
            monkeypatch.setitem(settings, key, value)
        yield
        connections.close_all()


@pooled_operation(progress=False, databases=("postgres",))
def saves(name):
    Person(name=name).save(using="postgres")


@pooled_operation(progress=False, databases=("postgres",))
def asks_and_saves(name):
    """Waits for the server also where its rows do not."""
    with connections["postgres"].cursor() as cursor:
        cursor.execute("SELECT 1")
    Person(name=name).save(using="postgres")


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_run_that_sets_nothing_grows_for_a_far_database(far, executor):
    report = asks_and_saves.using(executor=executor).map([f"p{number}" for number in range(400)])
    assert report.succeeded == 400
    first, second = report.statistics.first_workers, report.statistics.resizings[0]
    assert first == available_cpus()
    assert second.workers > first
    assert second.index < 200
    assert Person.objects.using("postgres").count() == 400


def test_a_run_that_sets_nothing_stays_within_the_free_slots(limited, slow_inserts, monkeypatch):
    """At no moment were there more: the role could not have them, and a worker without one would cost a `NotAdded`."""
    monkeypatch.setattr(options, "available_cpus", lambda: 2)  # fewer than it may have
    report = saves.map([f"p{number}" for number in range(400)])
    assert report.succeeded == 400
    numbers = [change.workers for change in report.statistics.resizings]
    assert numbers
    assert max(numbers) < LIMIT
    assert "since the server has no more" not in str(report)


@pooled_operation(progress=False)
def waits(number):
    time.sleep(0.005)


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_run_that_sets_nothing_does_not_grow_on_sqlite(executor):
    report = waits.using(executor=executor).map(range(300))
    assert report.ok
    assert report.statistics.resizings == []
    assert len(report.statistics.workers) == available_cpus()


@pytest.mark.parametrize("alias", ["postgres", "default"])
def test_a_block_that_sets_nothing_begins_with_enough(alias):
    """But not on SQLite."""
    workers = max(FEWEST if alias == "postgres" else 1, available_cpus())
    with concurrent_saves(progress=False, databases=(alias,)) as block:
        futures = [block.submit(waits, number) for number in range(2)]
        assert [future.result() for future in futures] == [None, None]
        assert block._driver._engine._executor.workers == workers


def test_a_fixed_number_stays(slow_inserts):
    report = saves_unless_told.using(workers=2).map(f"fast {number}" for number in range(100))
    assert report.ok
    assert report.statistics.resizings == []
