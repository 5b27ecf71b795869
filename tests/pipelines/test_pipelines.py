"""Pipelines: every stage with its own options, one report, and no lie about the database in between."""

import itertools
import json
import pickle
import threading

import pytest
from django.db import transaction
from django.db.transaction import TransactionManagementError

from poolsave import (
    DROP,
    InvalidOperation,
    InvalidOption,
    OperationsFailed,
    Status,
    concurrent_saves,
    pooled_operation,
)
from poolsave.testing import serial_saves
from tests.conftest import wait_until
from tests.models import Person
from tests.support import operations, stages
from tests.support.carriers import depth
from tests.support.stages import FORK, SERIAL, THREAD, saved_names, sums_up

with_database = pytest.mark.django_db(transaction=True)

APART = [
    pytest.param(THREAD, id="behind threads"),
    pytest.param({"start_method": "fork", "workers": 1}, id="in processes of its own"),
]


def test_report_of_a_pipeline_has_a_row_for_each_stage():
    pipeline = stages.drops_threes.using(**SERIAL) | stages.fails_on_five.using(**THREAD) | stages.doubles
    report = pipeline.map(range(10))
    assert report.values == [2, 4, 8, 14, 16]
    assert (report.total, report.succeeded, report.dropped, report.failed) == (10, 5, 4, 1)
    assert sums_up(report)
    assert not report.ok
    assert [(row.name, row.fed, row.out, row.dropped, row.failed) for row in report.stages] == [
        ("drops_threes", 10, 6, 4, 0), ("fails_on_five", 6, 5, 0, 1), ("doubles", 5, 5, 0, 0),
    ]  # fmt: skip
    assert "fails_on_five" in str(report)
    assert all(0 <= row.busy <= 1 for row in report.stages)


def test_dropped_object_is_no_failure():
    report = (stages.drops_threes | stages.doubles).using(**SERIAL).map(range(4))
    assert report.ok
    assert report.failures == []
    assert [one.status for one in report] == [Status.DROPPED, "succeeded", "succeeded", Status.DROPPED]
    report.raise_if_failed()


@pytest.mark.parametrize(("keep", "items"), [("values", [None, None]), ("all", [0, 3]), ("failures", [])])
def test_the_option_keep_decides_what_is_kept_of_the_dropped(keep, items):
    report = (stages.drops_threes | stages.doubles).using(keep=keep, **SERIAL).map(range(4))
    assert report.dropped == 2
    assert [one.item for one in report if one.status is Status.DROPPED] == items


def test_operation_outside_a_pipeline_returns_lists_and_drop():
    assert stages.twice(3) == [3, -3]
    assert stages.twice.using(**SERIAL).map([1, 2]).values == [[1, -1], [2, -2]]
    assert stages.drops_threes.using(**FORK).map([1, 3]).values == [1, DROP]
    assert pickle.loads(pickle.dumps(DROP)) is DROP


def test_stages_with_equal_worker_options_share_workers():
    a, b, c = stages.doubles, stages.drops_threes, stages.names
    assert repr(a | b | c) == "<Pipeline doubles + drops_threes + names>"
    assert repr(a | b.using(workers=3) | c) == "<Pipeline doubles | drops_threes | names>"
    assert repr(a | stages.twice | c) == "<Pipeline doubles + twice | names>"
    assert repr((a | b.using(workers=3)).using(**THREAD)) == "<Pipeline doubles | drops_threes>"
    for trail in (stages.where | stages.where).using(**FORK).map([[]] * 6).values:
        assert trail[0] == trail[1]


def test_composing_is_associative_and_leaves_its_parts_alone():
    a, b, c = stages.doubles, stages.drops_threes, stages.names
    left, right = (a | b) | c, a | (b | c)
    assert left == right
    assert hash(left) == hash(right)
    assert left != a | c
    assert left.using(**SERIAL).map([1]).values == right.using(**SERIAL).map([1]).values == ["name 2"]
    assert pickle.loads(pickle.dumps(left)) == left
    assert left(1) == ["name 2"]
    assert left(3) == []
    assert (a | stages.twice)(1) == [2, -2]


@pytest.mark.parametrize("stranger", [len, 5, None])
def test_only_operations_are_stages(stranger):
    with pytest.raises(InvalidOperation, match="@pooled_operation"):
        stages.doubles | stranger


def test_bind_gives_constants_to_the_stages_that_take_them():
    pipeline = (stages.kills_on | stages.kills_on | stages.doubles).bind(victim=-1).using(**FORK)
    assert pipeline.map([1, 2]).values == [2, 4]
    with pytest.raises(InvalidOperation, match="'number'"):
        pipeline.bind(number=3)  # is the object
    with pytest.raises(InvalidOperation, match="'nothing'"):
        pipeline.bind(victim=3, nothing=1)


def test_starmap_spreads_for_the_first_stage():
    @pooled_operation(transaction=None, progress=False)
    def adds(first, second=0):
        return first + second

    report = (adds | stages.doubles.using(**SERIAL)).map([1])
    assert report.values == [2]
    assert (adds.using(**SERIAL) | stages.doubles).starmap([(1, 2), {"first": 5}]).values == [6, 10]


def test_options_of_the_run_come_from_the_stages_and_must_agree():
    loud = stages.doubles.using(on_failure="raise", **SERIAL)
    with pytest.raises(OperationsFailed):
        (stages.fails_on_five.using(**SERIAL) | loud).map([5])
    torn = stages.fails_on_five.using(on_failure="collect") | loud
    with pytest.raises(InvalidOption, match=r"'doubles'.*'fails_on_five'.*using"):
        torn.map([5])
    assert [message.id for message in torn.check()] == ["poolsave.E001"]
    assert torn.using(on_failure="collect", **SERIAL).map([5]).failed == 1


def test_failures_name_their_stage_and_the_original_input():
    pipeline = stages.doubles.using(**SERIAL) | stages.twice.using(**THREAD) | stages.fails_on_five.using(**FORK)
    report = pipeline.map([1, 5, 7])
    assert [(one.index, one.item, one.stage, one.error.args) for one in report.failures] == [
        (1, 5, "fails_on_five", (10,)), (1, 5, "fails_on_five", (-10,)),
    ]  # fmt: skip
    assert all("'fails_on_five'" in one.error.__notes__[0] for one in report.failures)
    assert [one.stage for one in report if one.ok] == [None] * 4
    assert report.failed_items() == [5]


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("options", [SERIAL, THREAD, FORK])
def test_error_that_is_its_own_cause_is_reported_as_any_other(options, steps):
    fails = stages.fails_because_of_itself.bind(steps=steps).using(**options)
    report = (fails | stages.doubles).map([1])
    assert [(one.stage, type(one.error)) for one in report.failures] == [("fails_because_of_itself", LookupError)]
    with concurrent_saves(on_failure="collect", progress=False, transaction=None, **options) as saves:
        future = saves.submit(fails, 1)
    assert type(future.exception()) is LookupError


def test_value_that_cannot_be_pickled_fails_in_the_next_stage():
    @pooled_operation(transaction=None, progress=False, **SERIAL)
    def locks(number):
        return threading.Lock() if number == 1 else number

    report = (locks | stages.doubles.using(**FORK)).map(range(3))
    assert report.values == [0, 4]
    (failure,) = report.failures
    assert (failure.stage, failure.item, type(failure.error)) == ("doubles", 1, TypeError)
    assert sums_up(report)


def test_value_between_shared_stages_need_not_be_picklable():
    @pooled_operation(transaction=None, progress=False, **FORK)
    def locks(number):
        return threading.Lock() if number else number

    @pooled_operation(transaction=None, progress=False, **FORK)
    def unlocks(lock):
        return type(lock).__name__

    assert (locks | unlocks).map(range(2)).values == ["int", "lock"]


# Bounds


@pytest.mark.parametrize("fused", [True, False])
def test_an_endless_input_is_read_no_further_than_the_windows(fused):
    read = []
    endless = (read.append(number) or number for number in itertools.count())
    last = stages.doubles.using(window=4, chunksize=1, **FORK)
    pipeline = (
        stages.doubles.using(window=4 if fused else 3, chunksize=1, **FORK)
        | last
        | stages.names.using(window=5, **THREAD)
    )
    outcomes = pipeline.stream(endless, ordered=True)
    windows = 4 + 5 + (0 if fused else 3)
    for taken, outcome in enumerate(itertools.islice(outcomes, 60)):
        assert outcome.index == taken
        assert len(read) <= taken + 1 + windows
    outcomes.close()


def test_slow_last_stage_stops_reading_once_windows_are_full():
    read, done = [], []

    @pooled_operation(transaction=None, progress=False, window=2, workers=1, chunksize=1, **THREAD)
    def dawdles(number):
        wait_until(lambda: len(read) - len(done) >= 7 or len(read) == 60)
        held = len(read) - len(done)
        done.append(number)
        return held

    first = stages.doubles.using(window=3, chunksize=1, **SERIAL)
    second = stages.doubles.using(window=4, workers=1, chunksize=1, **FORK)
    report = (first | second | dawdles).map(read.append(number) or number for number in range(60))
    assert max(report.values) <= 3 + 4 + 2


@pytest.mark.parametrize("more", [0, 2])
@pytest.mark.parametrize("options", [FORK, THREAD])
def test_fast_stage_reads_no_further_than_a_slow_later_one_needs(options, more):
    """The fast stages could have thousands of objects in flight, by their own speed, before the slow one had ten."""
    read = []

    @pooled_operation(transaction=None, progress=False, workers=1, chunksize=1, **THREAD)
    def dawdles(number):
        threading.Event().wait(0.01)
        return number

    pipeline = stages.doubles.using(**options) | dawdles
    for workers in range(more):
        pipeline = stages.doubles.using(workers=2 + workers % 2, **THREAD) | pipeline
    outcomes = pipeline.stream(read.append(number) or number for number in itertools.count())
    for _outcome in itertools.islice(outcomes, 60):
        assert len(read) < 300
    outcomes.close()


def test_several_values_count_for_the_window():
    read = []
    numbers = (read.append(number) or number for number in range(100))

    @pooled_operation(expand=True, transaction=None, progress=False, window=3, chunksize=1, **SERIAL)
    def hundredfold(number):
        return [number] * 100

    outcomes = (hundredfold | stages.doubles.using(window=5, workers=1, **THREAD)).stream(numbers)
    for taken, _outcome in enumerate(itertools.islice(outcomes, 250)):
        assert len(read) <= taken // 100 + 1 + 3
    outcomes.close()


# Transactions


@with_database
@pytest.mark.parametrize("transaction", ["object", "chunk"])
@pytest.mark.parametrize("options", [SERIAL, THREAD, FORK])
def test_stage_never_runs_inside_the_transaction_of_another(options, transaction):
    """Not where stages share their workers, either."""

    @pooled_operation(transaction=transaction, progress=False)
    def keeps(pair):
        return (*pair, stages.inside_transaction(None)[1])

    pipeline = (stages.inside_transaction | keeps | stages.where.using(transaction=None)).using(
        workers=2, chunksize=3, **options
    )
    assert " + " in repr(pipeline)
    assert {tuple(value[1:3]) for value in pipeline.map(range(7)).values} == {(False, True)}


@with_database
@pytest.mark.parametrize("transaction", ["object", "chunk"])
@pytest.mark.parametrize("saved_by", [pytest.param({}, id="fused"), *APART])
def test_a_slow_stage_in_sixteen_threads_holds_no_lock(saved_by, transaction):
    """All threads are inside the slow stage when one of them tries to take SQLite's write lock."""
    barrier = threading.Barrier(16)

    @pooled_operation(transaction=None, progress=False)
    def waits_with_all(name):
        # While all are in here, none of them is saving, and none may hold what it has saved.
        if barrier.wait(30) == 0:
            stages.asks_for_the_lock(name)
        barrier.wait(30)
        return name

    threads = {"workers": 16, "chunksize": 1 if saved_by else 2, **THREAD}
    save = stages.saves_name.using(**threads, transaction=transaction) if not saved_by else (
        stages.saves_name.using(chunksize=2, transaction=transaction, **saved_by)
    )  # fmt: skip
    pipeline = waits_with_all.using(**threads, window=32) | save.using(window=32)
    assert (" + " in repr(pipeline)) is (not saved_by)
    count = 16 if saved_by else 32  # in processes of their own, saves of the first sixteen may go on while others wait
    report = pipeline.map([f"name {number}" for number in range(count)])
    assert report.succeeded == count
    assert len(saved_names()) == count


@with_database
@pytest.mark.parametrize("options", [SERIAL, THREAD, FORK])
def test_each_stage_keeps_what_it_has_saved(options):
    second = stages.saves_second.bind(fail=[3]).using(transaction="chunk")
    report = (stages.saves_first | second | stages.doubles).using(chunksize=4, **options).map(range(6))
    assert report.values == [0, 2, 4, 8, 10]
    assert saved_names() == [f"first {number}" for number in range(6)] + [f"second {n}" for n in (0, 1, 2, 4, 5)]
    (failure,) = report.failures
    assert (failure.stage, failure.status, failure.item) == ("saves_second", Status.FAILED, 3)
    assert report.failed_items() == []  # to feed it again would be to save it first again


@with_database
def test_failed_items_leaves_out_objects_that_were_saved_in_part():
    @pooled_operation(progress=False)
    def saves_positive(number):
        if number < 0:
            raise ValueError(number)
        return stages.saves_name(f"name {number}")

    report = (stages.twice | stages.fails_on_five | saves_positive).using(**SERIAL).map([1, 5])
    assert [(one.index, one.stage) for one in report.failures] == [
        (0, "saves_positive"), (1, "fails_on_five"), (1, "fails_on_five"),
    ]  # fmt: skip
    assert report.failed_items() == [5]


@with_database
@pytest.mark.parametrize("options", [SERIAL, FORK])
def test_on_commit_callback_that_raises_flaws_the_success(options):
    pipeline = (stages.complains_after_commit | stages.doubles).using(**options)
    report = pipeline.map([1])
    (flawed,) = report.flawed
    assert (flawed.value, type(flawed.error)) == (2, ZeroDivisionError)
    apart = stages.complains_after_commit.using(**SERIAL) | stages.doubles.using(**options)
    assert type(apart.map([1]).flawed[0].error) is ZeroDivisionError


@with_database
@pytest.mark.parametrize("options", [SERIAL, THREAD, FORK])
@pytest.mark.parametrize("fused", [True, False])
def test_a_queryset_is_fetched_by_the_first_stage(options, fused):
    Person.objects.bulk_create(Person(name=f"name {number}") for number in range(8))
    first = stages.fails_on_name.bind(name="name 4").using(workers=1, **options)
    second = stages.renames.using(workers=1, **options) if fused else stages.renames.using(**SERIAL)
    report = (first | second).map(Person.objects.order_by("pk"))
    assert report.succeeded == 7
    assert [person.name for person in report.failed_items()] == ["name 4"]
    assert report.failures[0].item == Person.objects.get(name="name 4").pk
    assert sum(name.endswith("renamed") for name in saved_names()) == 7


@with_database
def test_serial_saves_runs_all_stages_inline():

    with serial_saves(), transaction.atomic():
        report = (stages.names.using(**THREAD) | stages.saves_name | stages.doubles.using(timeout=5)).map(range(3))
        assert report.succeeded == 3
        transaction.set_rollback(True)
    assert saved_names() == []


@with_database
@pytest.mark.parametrize("options", [SERIAL, THREAD, FORK])
def test_pipeline_in_a_block_keeps_a_transaction_for_each_stage(options):
    pipeline = stages.inside_transaction | stages.saves_inside
    with concurrent_saves(transaction=None, on_failure="collect", **options) as saves:
        future = saves.submit(pipeline, 1)
        report = saves.map(stages.drops_threes | stages.names | stages.saves_name.bind(fail=["name 4"]), range(3, 6))
        assert future.result(30) == [(False, True)]
    assert [len(value) for value in report.values] == [0, 1]
    assert (report.failed, report.failures[0].item) == (1, 4)
    assert saved_names() == ["name 5"]


@with_database
@pytest.mark.parametrize("options", [SERIAL, THREAD, FORK])
def test_pipeline_in_a_block_fails_at_a_rolled_back_stage(options):
    """The stage returns as if all was well, but its value must not go on as that of a saved object."""
    with concurrent_saves(transaction=None, on_failure="collect", **options) as saves:
        future = saves.submit(operations.rolls_back_by_itself | stages.names, "a")
    assert isinstance(future.exception(), TransactionManagementError)
    assert saves.report.failed == 1
    assert saved_names() == []


@with_database
@pytest.mark.parametrize("carry", [(), (depth,)], ids=["by the fast loop", "one by one"])
@pytest.mark.parametrize("options", [SERIAL, THREAD, FORK])
def test_stage_committed_past_django_is_lost_in_a_block(options, carry):
    with concurrent_saves(transaction=None, on_failure="collect", carry=carry, **options) as saves:
        report = saves.map(stages.names | stages.commits_unseen, [1, 2])
    assert saved_names() == ["name 1", "name 2"]
    assert [outcome.status for outcome in report] == [Status.LOST] * 2
    assert all(isinstance(outcome.error, LookupError) for outcome in report)
    assert saves.report.lost == 2


@with_database
@pytest.mark.parametrize("carry", [(), (depth,)], ids=["by the fast loop", "one by one"])
@pytest.mark.parametrize("options", [SERIAL, THREAD, FORK])
def test_callback_that_raises_in_a_block_leaves_the_stage_saved(options, carry):
    """Its stage is committed by then: the call goes on, and has its value and the error."""
    pipeline = stages.saves_first | stages.complains_after_commit | stages.saves_second
    with concurrent_saves(transaction=None, carry=carry, **options) as saves:
        future = saves.submit(pipeline, 1)
        report = saves.map(pipeline, [2])
    assert saved_names() == ["first 1", "first 2", "second 1", "second 2"]
    assert future.result() == [1]
    assert report.values == [[2]]
    assert [type(outcome.error) for outcome in saves.report.flawed] == [ZeroDivisionError] * 2


def test_the_file_of_a_pipeline_has_a_row_per_stage(tmp_path):
    (stages.drops_threes | stages.names).using(**SERIAL).map(range(7)).to_json(tmp_path / "report.json")
    told = json.loads((tmp_path / "report.json").read_text())
    assert [(row["name"], row["fed"], row["out"], row["dropped"]) for row in told["stages"]] == [
        ("drops_threes", 7, 4, 3),
        ("names", 4, 4, 0),
    ]
    assert told["dropped"] == 3
    assert "busy" not in told  # which nobody has measured


def test_pipeline_is_refused_in_a_block_with_a_transaction():
    with concurrent_saves(**SERIAL, databases=("default",)) as saves:
        with pytest.raises(InvalidOption, match=r"'names'.*transaction=None"):
            saves.submit(stages.names | stages.saves_name, 1)
        with pytest.raises(InvalidOption, match="'second'"):
            saves.map(stages.saves_name | stages.saves_name.using(databases=("second",)), ["a"])
