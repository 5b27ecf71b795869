"""An exception whose class fails to be inspected, changed or shown costs its object one outcome, and nothing else."""

import csv
import json

import pytest

from poolsave import OperationsFailed, Status, concurrent_saves
from tests.contract import hostile
from tests.contract.hostile import NAMES, raises_hostile, saves_and_raises_hostile
from tests.models import Tag

BETWEEN = [
    name for pair in zip(NAMES, (f"good {number}" for number in range(len(NAMES))), strict=True) for name in pair
]
GOOD = [name for name in BETWEEN if name.startswith("good")]


def check_report(report):
    """Its failures are those of the hostile objects, and everything that a report can do works with them."""
    assert [failure.item for failure in report.failures] == NAMES
    assert {failure.status for failure in report.failures} == {Status.FAILED}
    assert all("raise" in failure.traceback for failure in report.failures)
    assert (report.total, report.lost, report.skipped) == (len(BETWEEN), 0, 0)
    assert {name for name, _state in report.by_cause()} == set(NAMES)
    assert repr(report)
    str(report).encode()
    assert all(repr(outcome) for outcome in report)
    with pytest.raises(OperationsFailed) as caught:
        report.raise_if_failed()
    assert len(caught.value.exceptions) == len(NAMES)
    assert caught.value.report is report


def test_each_hostile_exception_costs_one_outcome(pool, tmp_path):
    report = raises_hostile.using(**pool, chunksize=5).map(BETWEEN)
    check_report(report)
    assert report.values == GOOD
    report.to_json(tmp_path / "report.json")
    report.to_csv(tmp_path / "report.csv")
    told = json.loads((tmp_path / "report.json").read_text())["outcomes"]
    assert [row["item"] for row in told if row["status"] == "failed"] == NAMES
    with open(tmp_path / "report.csv", newline="") as file:
        assert [row["item"] for row in csv.DictReader(file) if row["status"] == "failed"] == NAMES


@pytest.mark.parametrize("chunksize", [1, 2])
def test_the_last_object_of_a_chunk_may_be_hostile(chunksize):
    report = raises_hostile.using(start_method="fork", chunksize=chunksize).map(BETWEEN[::-1])
    assert report.failed == len(NAMES)


@pytest.mark.parametrize("transaction", ["object", "chunk"])
@pytest.mark.parametrize("executor", ["serial", "thread", "process"])
def test_hostile_exceptions_are_rolled_back(transactional_db, executor, transaction):
    operation = saves_and_raises_hostile.using(executor=executor, transaction=transaction, chunksize=6)
    report = operation.map(BETWEEN)
    check_report(report)
    assert sorted(Tag.objects.values_list("name", flat=True)) == sorted(GOOD)


@pytest.mark.parametrize("executor", ["serial", "thread", "process"])
def test_pipeline_has_an_outcome_for_each_hostile_exception(executor):
    first = raises_hostile.using(executor=executor)
    check_report((first | first).map(BETWEEN))


@pytest.mark.parametrize("executor", ["serial", "thread", "process"])
def test_future_gives_each_hostile_exception(executor):
    options = {"executor": executor, "workers": 2, "transaction": None, "progress": False}
    with concurrent_saves(on_failure="collect", **options) as saves:
        futures = [saves.submit(raises_hostile, name) for name in BETWEEN]
        mapped = saves.map(raises_hostile, BETWEEN)
    assert [future.exception() is not None for future in futures] == [name in NAMES for name in BETWEEN]
    check_report(mapped)
    assert saves.report.failed == 2 * len(NAMES)


def test_hostile_exception_may_come_out_of_pickling():
    names = [name for name in NAMES if issubclass(type(hostile.make(name)), Exception)]
    objects = [hostile.HostileToPickle(name) for name in names]
    report = raises_hostile.using(start_method="fork").map(objects)
    assert [failure.item for failure in report.failures] == objects
    assert report.ok is False
