"""A stream has a report, which is true whenever it is read, and whose memory is bounded."""

import gc
import itertools
import signal
import threading
from weakref import WeakSet

import pytest

from poolsave import DROP, InvalidOperation, OperationsFailed, OutcomeStream, Status, pooled_operation
from tests.conftest import wait_until
from tests.models import Person
from tests.support import operations, pools, stages

POOLS = ["serial", "thread", "fork"]


@pytest.fixture(params=POOLS)
def options(request):
    return {**pools.POOLS[request.param], "chunksize": 2}


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_report_agrees_with_the_database_at_any_time(options, alias):
    saving = operations.save_person.using(**options, databases=(alias,)).bind(alias=alias, fail=("p3", "p7"))
    succeeded = failed = 0
    with saving.stream(f"p{number}" for number in range(12)) as outcomes:
        for outcome in outcomes:
            succeeded += outcome.ok
            failed += outcome.status is Status.FAILED
            committed = Person.objects.using(alias).count()
            assert committed >= outcomes.report.succeeded >= succeeded
            assert outcomes.report.failed >= failed
            assert not outcomes.report.ok
    report = outcomes.report
    assert (report.total, report.succeeded, report.failed) == (12, Person.objects.using(alias).count(), 2)
    assert [failure.item for failure in report.failures] == ["p3", "p7"]
    assert report.finished
    assert report.stopped is None


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_report_of_a_stream_left_early_has_all_that_was_read(options, alias):
    read = []
    saving = operations.save_person.using(**options, databases=(alias,)).bind(alias=alias)
    endless = (read.append(number) or f"p{number}" for number in itertools.count())
    with saving.stream(endless) as outcomes:
        for outcome in outcomes:
            if outcome.index == 5:
                break
    report = outcomes.report
    assert (report.total, report.succeeded) == (len(read), Person.objects.using(alias).count())
    assert report.total == report.succeeded + report.skipped
    assert report.stopped == "the stream was closed"
    assert not report.ok


@pytest.mark.parametrize("ordered", [False, True])
def test_error_of_the_input_leaves_a_complete_report(options, ordered):
    def breaks_off():
        yield from range(7)
        raise LookupError("no more")

    with (
        pytest.raises(LookupError) as caught,
        operations.fails_on_odd.using(**options).stream(breaks_off(), ordered=ordered) as outcomes,
    ):
        for _outcome in outcomes:
            pass
    assert caught.value.report is outcomes.report
    assert (outcomes.report.total, outcomes.report.succeeded, outcomes.report.failed) == (7, 4, 3)


def test_error_of_the_body_leaves_the_block_unchanged(options):
    error = LookupError("of the body")
    with (
        pytest.raises(LookupError) as caught,
        operations.doubles.using(**options).stream(itertools.count()) as outcomes,
    ):
        next(outcomes)
        raise error
    assert caught.value is error
    assert "report" not in vars(error)
    assert outcomes.report.finished
    with pytest.raises(StopIteration):
        next(outcomes)


def test_a_signal_in_the_body_leaves_a_complete_report(options):
    with (
        pytest.raises(KeyboardInterrupt),
        operations.doubles.using(**options).stream(itertools.count()) as outcomes,
    ):
        next(outcomes)
        signal.raise_signal(signal.SIGINT)
    report = outcomes.report
    assert report.finished
    assert report.total == report.succeeded + report.skipped > 0


def test_a_signal_while_a_stream_is_closed_is_not_lost():
    begun, closing = threading.Event(), threading.Event()

    def interrupts(number):
        if number:
            begun.set()
            assert closing.wait(20)
            wait_until(lambda: signal.getsignal(signal.SIGINT) is not signal.default_int_handler)
            signal.raise_signal(signal.SIGINT)
        return number

    outcomes = pooled_operation(
        interrupts, executor="thread", workers=2, chunksize=1, transaction=None, progress=False
    ).stream(range(2))
    next(outcomes)
    assert begun.wait(20)
    closing.set()
    with pytest.raises(KeyboardInterrupt) as caught:
        outcomes.close()
    assert caught.value.report is outcomes.report
    assert outcomes.report.finished
    assert outcomes.report.succeeded == 2


@pytest.mark.parametrize("ask", [lambda _outcomes: None, next])
def test_a_stream_can_be_closed_at_any_time_and_twice(options, ask):
    outcomes = operations.doubles.using(**options).stream(itertools.count())
    assert iter(outcomes) is outcomes
    assert isinstance(outcomes, OutcomeStream)
    ask(outcomes)
    outcomes.close()
    outcomes.close()
    assert outcomes.report.finished
    assert not outcomes.report.ok
    assert outcomes.report.stopped == "the stream was closed"
    assert list(outcomes) == []


def test_a_stream_is_an_iterator_without_with():
    outcomes = operations.fails_on_odd.using(executor="serial").stream(range(4))
    assert [outcome.status.value for outcome in outcomes] == ["succeeded", "failed"] * 2
    assert outcomes.report.finished
    assert outcomes.report.failed == 2


class Item:
    """An object that can be watched."""

    def __init__(self, number):
        self.number = number


def fails_for_two_causes(item):
    raise (LookupError if item.number % 3 else ValueError)(item.number)


FAILS = {"executor": "serial", "transaction": None, "progress": False}


@pytest.mark.parametrize("keep", ["values", "all", "failures"])
@pytest.mark.parametrize("join", [None, operations.doubles.using(executor="serial")])
def test_memory_of_the_report_is_bounded(keep, join):
    alive = WeakSet()

    def endless():
        for number in range(3000):
            alive.add(item := Item(number))
            yield item

    operation = pooled_operation(fails_for_two_causes, **FAILS)
    run = (operation if join is None else operation | join).using(keep=keep, window=10)
    with run.stream(endless()) as outcomes:
        for _outcome in outcomes:
            pass
    report = outcomes.report
    gc.collect()
    assert len(alive) < 1100  # the first 1,000 failures, and what is in flight
    assert report.failed == 3000
    assert report.causes == {("LookupError", None): 2000, ("ValueError", None): 1000}
    assert [failure.index for failure in report.failures] == [*range(1000)]
    assert report.omitted == 2000
    assert "2000 x LookupError" in str(report)
    assert "report.failures has the first 1000 failures" in str(report)
    with pytest.raises(InvalidOperation, match="leave out 2000 failures"):
        report.failed_items()
    with pytest.raises(OperationsFailed, match="3000 of 3000 objects") as caught:
        report.raise_if_failed()
    assert len(caught.value.exceptions) == 1000


def test_values_are_not_kept():
    values = WeakSet()

    @pooled_operation(**FAILS, keep="all", chunksize=1, window=3)
    def makes(number):
        values.add(item := Item(number))
        return item

    with makes.stream(range(100)) as outcomes:
        for outcome in outcomes:
            assert outcome.value.number == outcome.index
            del outcome
            assert len(values) < 6
    assert outcomes.report.values == []


def test_causes_without_an_end_are_counted_together():
    @pooled_operation(**FAILS)
    def raises_a_class_of_its_own(number):
        raise type(f"Error{number}", (Exception,), {})

    with raises_a_class_of_its_own.stream(range(150)) as outcomes:
        assert len(list(outcomes)) == 150
    causes = outcomes.report.causes
    assert len(causes) == 101
    assert next(iter(causes.items())) == (("other errors", None), 50)


@pytest.mark.parametrize("executor", POOLS)
def test_stream_of_a_pipeline_has_rows_for_stages(executor):
    @pooled_operation(transaction=None, progress=False)
    def drops_twos(number):
        return DROP if number % 2 == 0 else number

    pipeline = (drops_twos | stages.fails_on_five).using(**pools.POOLS[executor])
    with pipeline.stream(range(20)) as outcomes:
        statuses = [outcome.status for outcome in outcomes]
    report = outcomes.report
    assert (report.dropped, report.failed, report.succeeded) == (10, 2, 8)
    assert statuses.count(Status.DROPPED) == 10
    assert [(row.fed, row.out, row.failed) for row in report.stages] == [(20, 10, 0), (10, 8, 2)]
    assert [failure.index for failure in report.failures] == [5, 15]
    assert report.failed_items() == [5, 15]


def test_on_failure_raise_ends_a_stream_with_its_report():
    outcomes = operations.fails_on_odd.using(executor="serial", on_failure="raise").stream(range(4))
    with pytest.raises(OperationsFailed) as caught:
        for _outcome in outcomes:
            pass
    assert caught.value.report is outcomes.report
