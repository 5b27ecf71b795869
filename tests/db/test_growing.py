"""With `workers="auto"` there are more workers while they wait for the server, and fewer when it has too much to do."""

import hashlib
import itertools

import pytest
from django.db import connections

from poolsave import pooled_operation
from poolsave._engine.worker_policy import OVERLOADED
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
    """Computes without Python's lock, as the hash of a password does."""
    return hashlib.pbkdf2_hmac("sha256", b"password", str(number).encode(), 2000)


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_workers_that_compute_stay_as_they_are(executor):
    report = hashes.using(executor=executor, workers=(2, 9)).map(range(2000))
    assert report.ok
    assert report.statistics.resizings == []


def test_a_fixed_number_stays(slow_inserts):
    report = saves_unless_told.using(workers=2).map(f"fast {number}" for number in range(100))
    assert report.ok
    assert report.statistics.resizings == []
