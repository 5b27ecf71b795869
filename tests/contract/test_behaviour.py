"""Values, failures, order, window and context are the same with every executor and start method."""

import pytest

from poolsave import InvalidOperation, OperationsFailed, Status
from tests.support import operations


def test_map_gives_values_in_input_order(pool):
    report = operations.doubles.using(**pool).map(range(25))
    assert report.values == [2 * number for number in range(25)]
    assert report.ok
    assert len(report) == report.total == report.succeeded == 25


def test_a_failure_costs_one_outcome(pool):
    report = operations.fails_on_odd.using(**pool, chunksize=4).map(range(10))
    assert report.values == [0, 2, 4, 6, 8]
    assert [(failure.index, failure.item, failure.status) for failure in report.failures] == [
        (number, number, Status.FAILED) for number in (1, 3, 5, 7, 9)
    ]
    assert [failure.error.args for failure in report.failures] == [(number,) for number in (1, 3, 5, 7, 9)]
    assert all("fails_on_odd" in failure.traceback for failure in report.failures)
    with pytest.raises(OperationsFailed) as caught:
        report.raise_if_failed()
    assert caught.value.report is report
    assert [type(error) for error in caught.value.exceptions] == [ValueError] * 5


def test_starmap_takes_tuples_and_mappings(pool):
    report = operations.adds.using(**pool).starmap([(1, 2), {"first": 3, "second": 4, "third": 5}, 6])
    assert report.values == [3, 12]
    assert [type(failure.error) for failure in report.failures] == [TypeError]


def test_stream_gives_every_outcome_once(pool):
    outcomes = list(operations.fails_on_odd.using(**pool).stream(range(12)))
    assert sorted(outcome.index for outcome in outcomes) == list(range(12))
    assert {outcome.index for outcome in outcomes if not outcome.ok} == {1, 3, 5, 7, 9, 11}
    assert all(outcome.item == outcome.index for outcome in outcomes)


def test_an_ordered_stream_keeps_the_input_order(pool):
    outcomes = operations.doubles.using(**pool, chunksize=2).stream(range(15), ordered=True)
    assert [outcome.value for outcome in outcomes] == [2 * number for number in range(15)]


def test_bound_constants_arrive_with_every_object(pool):
    bound = operations.adds.using(**pool).bind(third=10)
    assert bound.starmap([(1, 1), (2, 2)]).values == [12, 14]
    with pytest.raises(InvalidOperation, match="fourth"):
        operations.adds.bind(fourth=1)


def test_an_empty_input_is_an_empty_report(pool):
    report = operations.doubles.using(**pool).map([])
    assert report.ok
    assert list(report) == report.values == report.failures == []


def test_the_input_is_read_no_further_than_the_window(pool):
    read = []

    def endless():
        number = 0
        while True:
            read.append(number)
            yield number
            number += 1

    outcomes = operations.doubles.using(**pool, window=6, chunksize=3).stream(endless())
    for seen in range(1, 40):
        next(outcomes)
        assert len(read) <= seen + 6
    outcomes.close()
    assert len(read) <= 39 + 6


def test_the_caller_s_language_and_time_zone_go_along(pool):
    from django.utils import timezone, translation

    with translation.override("de"), timezone.override("Europe/Lisbon"):
        report = operations.language_and_zone.using(**pool).map([1, 2, 3])
    assert set(report.values) == {("de", "Europe/Lisbon")}


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_objects_are_saved_with_all_that_belongs_to_them(pool, alias):
    check_saved(operations.save_person.using(**pool), alias)


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_batched_objects_are_saved_with_all_that_belongs_to_them(pool):
    operation = operations.save_person.using(**pool, transaction="chunk", batch_writes=True, chunksize=5)
    assert check_saved(operation, "postgres").statistics.batching is not None


def check_saved(operation, alias):
    from tests.models import Badge, Person

    people = operation.using(databases=(alias,)).bind(alias=alias, fail=("p3",))
    report = people.map([f"p{number}" for number in range(10)])
    saved = Person.objects.using(alias).filter(tags__name="member")
    assert sorted(saved.values_list("pk", flat=True)) == sorted(report.values)
    assert sorted(Badge.objects.using(alias).values_list("person_id", flat=True)) == sorted(report.values)
    assert [failure.item for failure in report.failures] == ["p3"]
    assert not Person.objects.using(alias).filter(name="p3").exists()
    return report


def test_max_failures_stops_the_feeding(pool):
    read = []
    report = operations.fails_on_odd.using(**pool, max_failures=3, chunksize=1, window=4).map(
        read.append(number) or number for number in range(10_000)
    )
    assert 3 <= report.failed <= 3 + 4
    assert report.total == len(read) < 30
    assert "max_failures" in report.stopped
    assert not report.ok


def test_settings_of_a_copy_leave_the_original_alone(pool):
    copy = operations.doubles.using(**pool, keep="failures")
    assert copy.map(range(5)).values == []
    assert operations.doubles.options.keep == "values"
