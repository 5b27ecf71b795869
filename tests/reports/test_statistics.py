"""A report says how its workers spent their time, which objects took longest, and what to change."""

import json
import os
import pickle
import signal
import threading
import time

import pytest

from poolsave import concurrent_saves, pooled_operation
from tests.models import Person
from tests.support import operations


@pytest.mark.parametrize("executor", ["process", "thread", "serial"])
def test_every_worker_that_ran_something_is_listed(executor):
    report = operations.doubles.using(executor=executor, workers=2, chunksize=5).map(range(100))
    assert sum(one.objects for one in report.statistics.workers) == 100
    assert {outcome.worker for outcome in report} <= {one.worker for one in report.statistics.workers}
    assert 0 < report.statistics.busy <= 1
    if executor != "serial":
        assert len(report.statistics.workers) == 2
        assert all(one.start > 0 for one in report.statistics.workers)


def naps_once(item):
    if item == 37:
        threading.Event().wait(0.2)
    return item


@pytest.mark.parametrize("executor", ["process", "serial"])
def test_the_slowest_object_is_named_with_its_item(executor):
    report = pooled_operation(executor=executor, transaction=None, workers=2)(naps_once).map(range(1000))
    slow = report.statistics.slowest[0]
    assert (slow.index, slow.item) == (37, 37)
    assert slow.seconds >= 0.2


@pytest.mark.django_db(transaction=True, databases=["default", "postgres"])
@pytest.mark.parametrize("transaction", ["object", "chunk"])
def test_commits_are_counted_apart(transaction):
    operation = operations.save_person.using(workers=1, transaction=transaction, databases=("postgres",), chunksize=10)
    report = operation.bind(alias="postgres").map([f"p{number}" for number in range(20)])
    (one,) = report.statistics.workers
    assert 0 < one.commit < one.commit + one.work <= report.elapsed
    assert Person.objects.using("postgres").count() == 20


def test_a_worker_that_was_killed_does_not_wait_on():
    def dies_or_naps(number):
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.3 if number == 2 else 0)

    operation = pooled_operation(dies_or_naps, workers=1, chunksize=1, transaction=None, start_method="fork")
    report = operation.using(progress=False).map(range(3))
    assert report.lost == 1
    (dead,) = [one for one in report.statistics.workers if one.ended]
    assert dead.wait <= report.elapsed - 0.3


def test_block_has_statistics_too():
    with concurrent_saves(executor="thread", transaction=None, workers=2) as saves:
        for number in range(20):
            saves.submit(pow, number, 2)
    assert sum(one.objects for one in saves.report.statistics.workers) == 20


def test_statistics_print_as_a_table_and_go_into_files(tmp_path):
    report = operations.doubles.using(executor="serial").map(range(10))
    table = str(report.statistics)
    assert "objects" in table.splitlines()[0]
    assert "slowest" in table
    assert "busy for" in str(report)
    report.to_json(tmp_path / "report.json")
    summary = json.loads((tmp_path / "report.json").read_text())
    assert summary["workers"][0]["objects"] == 10
    assert len(summary["slowest"]) == len(report.statistics.slowest) > 0
    assert str(pickle.loads(pickle.dumps(report)).statistics) == table


def test_a_report_can_be_pickled_whatever_the_objects_are():
    report = operations.echoes.using(executor="thread", transaction=None, keep="failures").map(
        [threading.Lock() for _ in range(10)]
    )
    slow = pickle.loads(pickle.dumps(report)).statistics.slowest
    assert [one.index for one in slow] == [one.index for one in report.statistics.slowest]


def test_a_slow_input_is_named_by_the_hint():
    def slowly():
        for number in range(12):
            time.sleep(0.1)  # the work of the input
            yield number

    report = operations.doubles.using(executor="thread", workers=2).map(slowly())
    assert "input" in report.statistics.hint
    assert "hint" in str(report)
