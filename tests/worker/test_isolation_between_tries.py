"""Each try of an object gets it as it was sent, and what one does to the transaction costs no other."""

import os
import signal

import pytest
from django.db import OperationalError, connections, transaction

from poolsave import Status, pooled_operation
from tests.models import Person
from tests.support import operations

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")
FORK = {"start_method": "fork", "workers": 1, "progress": False, "chunksize": 5}


def names(alias):
    return sorted(Person.objects.using(alias).values_list("name", flat=True))


@pytest.mark.parametrize("mode", ["object", "chunk"])
def test_a_retried_object_is_as_it_was_sent(tmp_path, mode):
    seen = tmp_path / "seen"

    def grows(row):
        row["name"] += "!"
        Person(name=row["name"]).save()
        if row["name"].startswith("d") and not seen.exists():
            seen.touch()
            raise OperationalError("database is locked") from operations._locked()

    report = pooled_operation(grows).using(**FORK, transaction=mode).map([{"name": name} for name in "abcd"])
    assert report.ok
    assert names("default") == ["a!", "b!", "c!", "d!"]


@pytest.mark.parametrize("bad", [2, 4])
def test_a_raw_rollback_takes_no_other_object_of_the_chunk_along(alias, bad):
    def rolls_back(number):
        Person(name=f"p{number}").save(using=alias)
        if number == bad:
            with connections[alias].cursor() as cursor:
                cursor.execute("ROLLBACK")

    report = pooled_operation(rolls_back).using(**FORK, transaction="chunk", databases=(alias,)).map(range(5))
    others = [f"p{number}" for number in range(5) if number != bad]
    assert [name for name in names(alias) if name != f"p{bad}"] == others
    assert {outcome.index for outcome in report if outcome.status is Status.SUCCEEDED} >= {0, 1, 2, 3, 4} - {bad}


def test_callbacks_of_successes_stay_in_the_outer_transaction(alias):
    """The transaction is the caller's; what failed has no callback left in it."""
    called = []

    def calls_back(number):
        Person(name=f"p{number}").save(using=alias)
        transaction.on_commit(lambda: called.append(number), using=alias)
        if number == 3:
            raise ValueError(number)

    operation = pooled_operation(calls_back).using(executor="serial", transaction="chunk", databases=(alias,))
    with transaction.atomic(using=alias):
        assert operation.using(chunksize=5, progress=False).map(range(1, 5)).failed == 1
    assert called == [1, 2, 4]


AUTO = {"executor": "auto", "workers": 2, "progress": False, "transaction": None, "start_method": "fork"}


@pytest.fixture
def leaving(monkeypatch):
    """Go over to the pool at the first opportunity, and stay."""
    from poolsave._auto import engine as _auto_engine

    monkeypatch.setattr(_auto_engine, "MIN_SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr(_auto_engine, "should_start_pool", lambda *_figures: (True, "for a test"))
    monkeypatch.setattr(_auto_engine, "should_keep_pool", lambda *_figures, **_more: (None, "for a test"))


@pytest.mark.parametrize("plain", [20, 23, 31])
def test_unpicklable_last_object_runs_in_the_caller(leaving, plain):
    def objects():
        yield from range(plain)
        yield lambda: None

    report = pooled_operation(callable).using(**AUTO, chunksize=2).map(objects())
    assert report.values == [False] * plain + [True]


def kills_its_worker(item):
    if item == 30:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def test_after_a_worker_has_died_what_cannot_be_sent_fails(leaving):
    objects = [*range(40), lambda: None, *range(41, 60)]
    report = pooled_operation(kills_its_worker).using(**AUTO, chunksize=2).map(iter(objects))
    assert report.lost == 1
    assert [failure.index for failure in report.failures] == [30, 40]
    assert os.getpid() not in {outcome.value for outcome in report if outcome.index > 40}


def test_nested_run_leaves_the_outer_connection_as_it_was(monkeypatch):
    connection = connections["default"]
    for name in ("_commit", "_rollback"):  # as somebody else's instrumentation does
        monkeypatch.setitem(vars(connection), name, getattr(connection, name))

    def saves(name):
        Person(name=name).save()
        return name

    inner = pooled_operation(saves).using(executor="auto", workers=2, progress=False)
    ends = {name: vars(connections["default"]).get(name) for name in ("_commit", "_rollback")}

    def nests(number):
        return len(inner.map([f"{number}-{place}" for place in range(20)]))

    report = pooled_operation(nests).using(executor="auto", workers=2, progress=False).map(range(60))
    assert report.values == [20] * 60
    assert Person.objects.count() == 1200
    assert {name: vars(connections["default"]).get(name) for name in ends} == ends
