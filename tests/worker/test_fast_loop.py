"""Functions that manage their own transactions run with as little around them as possible, and the same promises."""

import gc
import os
import random
import signal
import threading
import time
from array import array
from collections import Counter
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolsave import Status, executors, pooled_operation
from poolsave._runs.run import run_of
from poolsave._worker.modes.fast_loop import FastLoop
from poolsave._worker.replies import Reply, ReplyBuilder
from poolsave.executors.serial import LocalMarks
from tests.support import operations
from tests.support.selection import examples

pure = pooled_operation(transaction=None, workers=2, progress=False, start_method="fork")
kinds = st.sampled_from(["value", "list", "error", "lock"])


def act(kind):
    if kind == "error":
        raise ValueError(kind)
    return {"value": 1, "list": [1], "lock": threading.Lock()}[kind]


@given(st.lists(kinds, max_size=50), st.booleans())
def test_every_object_is_answered_for_once_and_in_order(objects, crosses):
    replies = []
    began = time.perf_counter()
    builder = ReplyBuilder("w", 0.0, crosses=crosses)
    begun = FastLoop(act, LocalMarks(), builder, lambda body, final: replies.append((body, final))).run(objects)
    took = time.perf_counter() - began
    assert begun == len(objects)
    answers = [Reply.from_bytes(body) if crosses else body for body, _final in replies]
    assert [answer.offset for answer in answers] == [
        sum(len(one.values) for one in answers[:n]) for n in range(len(answers))
    ]
    assert sum(len(answer.values) for answer in answers) == len(objects)
    assert [final for _body, final in replies] == [False] * (len(replies) - 1) + [True] * bool(objects)
    failed = {answer.offset + place for answer in answers for place in answer.details}
    bad = {"error", "lock"} if crosses else {"error"}
    assert failed == {place for place, kind in enumerate(objects) if kind in bad}
    laps = [lap for answer in answers for lap in answer.seconds]
    assert all(lap >= 0 for lap in laps)
    assert sum(laps) <= took


def test_failure_is_sent_before_its_mark_says_returned():
    marks = LocalMarks()
    times = []
    marks.stamps = lambda size, **_marks: times.append(array("d", [0.0] * size)) or times[0]
    seen = []
    builder = ReplyBuilder("w", 0.0, crosses=True)
    FastLoop(act, marks, builder, lambda body, final: seen.append(list(times[0]))).run(["value", "error"])
    assert seen[0][0] > 0
    assert seen[0][1] == 0.0


def test_halt_begins_no_further_object():
    marks = LocalMarks()

    def stops(number):
        marks.halted = number == 3
        threading.Event().wait(0.002)
        return number

    begun = FastLoop(stops, marks, ReplyBuilder("w", 0.0, crosses=False), lambda body, final: None).run(range(10))
    assert begun == 4


def test_worker_death_among_quick_objects_costs_one():
    report = operations.kills_itself.using(chunksize=500, start_method="fork").map(
        [*range(10, 300), 3, *range(400, 600)]
    )
    assert (report.lost, report.succeeded, report.total) == (1, 490, 491)
    assert report.failures[0].item == 3


grown = []


def grows(number):
    grown.append(number)
    return grown


def test_a_value_is_what_it_was_when_the_function_returned():
    grown.clear()
    report = pure(grows).using(workers=1, chunksize=3).map([1, 2, 3])
    assert report.values == [[1], [1, 2], [1, 2, 3]]


def marks_row(row):
    seen = "seen" in row
    row["seen"] = True
    return seen


def test_objects_that_are_the_same_are_not_the_same_in_a_worker():
    row = {"name": "ann"}
    report = pure(marks_row).using(chunksize=10).map([row] * 10)
    assert report.values == [False] * 10
    assert "seen" not in row


def test_object_that_contains_itself_reaches_the_worker():
    knot = []
    knot.append(knot)
    report = pure(len).using(chunksize=2).map([knot, [1, 2]])
    assert report.values == [1, 2]


def shares(pair):
    return pair["a"] is pair["b"]


def test_value_that_an_object_has_twice_stays_one_in_the_worker():
    thing = [1]
    assert pure(shares).using(chunksize=3).map([{"a": thing, "b": thing}] * 3).values == [True] * 3


class Alarm(Exception):
    """What a signal's handler raises, at any moment."""


@given(st.integers(0, 40), st.sampled_from(["before the object is taken", "after it has returned", "inside"]))
def test_an_exception_of_a_signal_at_any_moment_costs_one_object(when, where):
    size = 40
    run = FastLoop(
        lambda item: item, LocalMarks(), ReplyBuilder("w", 0.0, crosses=False), lambda body, final: got.append(body)
    )
    got, go_on = [], run._run_until_check

    def interrupted(place):
        place, error = go_on(place) if place > when else _until(run, place, when)
        if error is None and place == when < size:
            if where == "after it has returned":
                run._values.append(next(run._items))
            elif where == "inside":
                next(run._items)
            return place, Alarm()
        return place, error

    run._run_until_check = interrupted
    assert run.run(list(range(size))) == size
    values = [value for body in got for value in body.values]
    assert values == [None if number == when else number for number in range(size)]
    failed = [body.offset + place for body in got for place in body.details]
    assert failed == ([when] if when < size else [])


def _until(run, place, when):
    while place < min(when, 40):
        run._values.append(next(run._items))
        run._ends[place] = time.perf_counter()
        place += 1
    return place, None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # if it sounds in a finaliser
@pytest.mark.parametrize("executor", ["serial", "auto"])
def test_alarm_in_the_caller_runs_nothing_twice(executor):
    """A handler of the program's own raises between any two instructions, of poolsave's, too.

    It costs one object at most. Few alarms sound in a function: it goes on until one has.
    """
    pure(str).using(executor=executor).map(range(60_000))  # what Django imports at first would stay imported by half
    generator, ended = random.Random(1), Counter()
    for number in range(300):
        if number >= examples(48) and ended["object"]:
            break
        called = []
        operation = pure(called.append).using(executor=executor, keep="all")
        try:
            with alarm_after(generator.uniform(0.001, 0.01)):
                report = operation.map(range(60_000))
        except Alarm:
            ended["run"] += 1
        else:
            ended["object"] += report.failed
            assert [outcome.index for outcome in report] == list(range(60_000))
            assert report.succeeded + report.failed == 60_000
            assert report.failed <= 1
            assert {failure.item for failure in report.failures} >= set(range(60_000)) - set(called)
        assert called == sorted(set(called))
    assert ended["object"] > 0
    pure(called.append).map([1])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


class Deafened(executors.SerialExecutor):
    """A signal's handler raises when a chunk has run, before its reply is read."""

    def wait(self, timeout):
        if super().wait(timeout):
            raise Alarm
        return ()


def test_objects_without_an_answer_are_lost_and_not_awaited():
    called = []
    operation = pure(called.append).using(executor=Deafened(), keep="all", chunksize=5)
    run = run_of(operation.__poolsave_spec__(), range(20))
    with pytest.raises(Alarm):
        run.complete()
    assert called == list(range(5))
    assert [(outcome.index, outcome.status) for outcome in run.report] == [(number, Status.LOST) for number in called]
    assert "came before its outcome" in str(run.report.failures[0].error)


@contextmanager
def alarm_after(seconds):
    def sound(_signum, _frame):
        if sounding:
            raise Alarm

    sounding = True
    gc.collect()
    gc.disable()  # or it may sound in somebody's callback of the builder, from which nothing can be raised
    before = signal.signal(signal.SIGVTALRM, sound)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        sounding = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        gc.enable()


def slow_or_interrupts(number, *, caller):
    if number == 100:
        os.kill(caller, signal.SIGINT)
    threading.Event().wait(0.001)
    return number


def test_an_interrupt_skips_what_has_not_begun():
    with pytest.raises(KeyboardInterrupt) as caught:
        pure(slow_or_interrupts).using(chunksize=2000, workers=1).bind(caller=os.getpid()).map(range(2000))
    report = caught.value.report
    assert report.total == report.succeeded + report.skipped == 2000
    assert 100 < report.succeeded < 1900
    assert all(outcome.status is Status.SKIPPED for outcome in report if outcome.index > 1900)
