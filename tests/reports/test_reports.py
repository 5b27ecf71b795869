"""Reports: values in input order, failures with their objects, counts that always add up."""

import csv
import datetime as dt
import json

import pytest

from poolsave import OperationsFailed, Outcome, Status
from tests.support import operations


def report_of(keep="values", numbers=range(10)):
    return operations.fails_on_odd.using(executor="serial", keep=keep, chunksize=3).map(numbers)


def test_values_are_those_of_the_successes_in_input_order():
    assert report_of().values == [0, 2, 4, 6, 8]
    assert report_of("all").values == [0, 2, 4, 6, 8]
    assert report_of("failures").values == []


def test_keep_decides_which_outcomes_and_items_are_there():
    assert [outcome.index for outcome in report_of("all")] == list(range(10))
    assert [outcome.item for outcome in report_of("all")] == list(range(10))
    assert [outcome.item for outcome in report_of("values") if outcome.ok] == [None] * 5
    assert [outcome.index for outcome in report_of("failures")] == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("keep", ["values", "all", "failures"])
def test_failures_are_always_kept_with_their_objects(keep):
    report = report_of(keep)
    assert [failure.item for failure in report.failures] == [1, 3, 5, 7, 9]
    assert (report.total, report.succeeded, report.failed, report.lost, report.skipped) == (10, 5, 5, 0, 0)
    assert not report.ok


def test_failures_are_grouped_by_cause():
    ((cause, outcomes),) = report_of().by_cause().items()
    assert cause == ("ValueError", None)
    assert len(outcomes) == 5


def test_report_prints_as_text_for_people():
    text = str(report_of())
    assert "10 objects" in text
    assert "5 x ValueError, first at index 1 (1): 1" in text
    assert repr(report_of()) == "<Report total=10 succeeded=5 failed=5>"


def test_times_and_rates_are_there():
    report = report_of()
    assert report.elapsed > 0
    assert report.rate == pytest.approx(10 / report.elapsed)
    assert all(outcome.seconds > 0 for outcome in report)


def test_raising_again_adds_no_second_note():
    report = report_of()
    for _ in range(2):
        with pytest.raises(OperationsFailed) as caught:
            report.raise_if_failed()
    assert caught.value.exceptions[0].__notes__ == ["poolsave: object 1, failed"]


def test_except_star_keeps_the_report():
    report = report_of()
    try:
        report.raise_if_failed()
    except* ValueError as group:
        assert group.report is report


def test_raise_if_failed_raises_nothing_without_failures():
    report = report_of(numbers=[2, 4])
    report.raise_if_failed()
    assert report.ok
    assert bool(report_of(numbers=[])) is True


def test_an_outcome_says_its_state_in_one_line():
    assert repr(Outcome(index=3, status=Status.SUCCEEDED, value=7)) == "<Outcome 3 succeeded value=7>"
    assert repr(Outcome(index=3, status=Status.LOST, error=KeyError())) == "<Outcome 3 lost error=KeyError()>"


@operations.pure
def misbehaves(item):
    if isinstance(item, str) and item.startswith("="):
        raise ValueError(item)
    return item


def test_failed_items_can_be_fed_again():
    report = misbehaves.using(executor="serial").map(["a", "=1", "b", "=2"])
    assert report.failed_items() == ["=1", "=2"]


def test_report_can_be_written_as_json(tmp_path):
    path = tmp_path / "report.json"
    items = ["a", "=1", dt.date(2026, 1, 2), {"key": object()}]
    misbehaves.using(executor="serial", keep="all").map(items).to_json(path)
    found = json.loads(path.read_text())
    assert (found["total"], found["succeeded"], found["failed"], found["lost"], found["skipped"]) == (4, 3, 1, 0, 0)
    assert [outcome["status"] for outcome in found["outcomes"]] == ["succeeded", "failed", "succeeded", "succeeded"]
    assert found["outcomes"][1]["error_type"] == "ValueError"
    assert found["outcomes"][2]["value"] == "2026-01-02"
    assert "object" in found["outcomes"][3]["item"]["key"]


@pytest.mark.parametrize("dangerous", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_of_a_csv_file_is_a_formula(tmp_path, dangerous):
    path = tmp_path / "report.csv"
    misbehaves.using(executor="serial", keep="all").map([dangerous, -5, "plain"]).to_csv(path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["item"] == "'" + dangerous
    assert rows[1]["value"] == "-5"
    assert rows[2]["value"] == "plain"
    assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) for row in rows for cell in row.values())
