"""What throttles say holds for `map`, streams, blocks and pipelines, in every executor, and is told."""

import json
import logging
import os
import signal
import threading
import time

import pytest

from poolsave import InvalidOption, Options, concurrent_saves, pooled_operation
from poolsave.testing import serial_saves
from poolsave.throttles import Hours, Pace
from tests.support import operations
from tests.support.pools import EXECUTORS


@pytest.fixture
def quick_looks(looks_every):
    looks_every(0.1)


@pooled_operation(transaction=None, workers=2, progress=False)
def started_at(_item):
    return time.time()


class ClosedFor:
    """A throttle that lets nothing start at its first looks, and then everything."""

    def __init__(self, looks):
        self.looks = looks
        self.opened_at = None

    def __call__(self):
        self.looks -= 1
        if self.looks >= 0:
            return 0.0, "closed"
        self.opened_at = self.opened_at or time.time()
        return None

    def __repr__(self):
        return "ClosedFor"


@pytest.mark.parametrize("name", ["serial", "thread", "fork", "process-pool"])
def test_nothing_starts_while_a_throttle_is_closed(name, quick_looks):
    throttle = ClosedFor(3)
    with EXECUTORS[name].opened() as options:
        report = started_at.using(**options, throttle=throttle).map(range(10))
    assert min(report.values) >= throttle.opened_at
    (row,) = report.throttled
    assert (row.throttle, row.reason) == ("ClosedFor", "closed")
    assert 0.2 < row.held <= row.seconds


def test_a_stream_and_auto_wait_as_well(quick_looks):
    throttle = ClosedFor(3)
    with started_at.using(executor="auto", throttle=throttle).stream(range(10)) as outcomes:
        assert min(outcome.value for outcome in outcomes) >= throttle.opened_at
    assert outcomes.report.throttled[0].reason == "closed"


@pytest.mark.parametrize("executor", ["serial", "thread"])
def test_a_block_waits_as_well(executor, quick_looks):
    throttle = ClosedFor(3)
    with concurrent_saves(executor=executor, transaction=None, throttle=[throttle], progress=False) as saves:
        future = saves.submit(started_at.func, 1)
        assert future.result() >= throttle.opened_at
    assert saves.report.throttled[0].reason == "closed"


def test_all_stages_of_a_pipeline_wait(quick_looks):
    throttle = ClosedFor(0)
    closes = threading.Event()

    def close(number):
        if number == 5:
            throttle.looks, throttle.opened_at = 3, None
            closes.set()
            time.sleep(0.2)  # until the next look
        return number

    first = pooled_operation(close, executor="thread", transaction=None, workers=1, chunksize=1, progress=False)
    pipeline = first | started_at.using(executor="serial", chunksize=1)
    report = pipeline.using(throttle=throttle).map(range(10))
    assert closes.is_set()
    closed = [value for value in report.values[5:] if value < throttle.opened_at]
    assert report.ok
    assert closed == []
    assert report.throttled[0].reason == "closed"


def test_half_a_share_keeps_half_of_the_workers_busy(quick_looks):
    running, most = [], []

    def runs(_item):
        running.append(1)
        most.append(len(running))
        time.sleep(0.01)
        running.pop()

    options = {"executor": "thread", "workers": 4, "transaction": None, "progress": False, "chunksize": 1}
    pooled_operation(runs, **options, throttle=lambda: 0.5).map(range(30))
    assert max(most) == 2
    most.clear()
    pooled_operation(runs, **options).map(range(30))
    assert max(most) == 4


@pytest.mark.parametrize(
    "options",
    [
        {"executor": "process", "start_method": "fork", "workers": 4},
        {"executor": "thread", "workers": 4, "chunksize": 25},
        {"executor": "serial"},
    ],
)
def test_a_pace_is_kept(options):
    began = time.perf_counter()
    report = operations.doubles.using(**options, throttle=Pace(500)).map(range(600))
    seconds = time.perf_counter() - began
    assert report.ok
    assert 1.1 < seconds < 4  # 600 objects, of which the first chunk goes out at once
    assert report.throttled[0].reason == "at most 500 objects per second"
    assert report.throttled[0].seconds > 0.1


def test_a_pipeline_is_paced_at_its_input():
    pipeline = operations.doubles.using(executor="thread") | operations.doubles.using(executor="serial")
    began = time.perf_counter()
    assert pipeline.using(throttle=Pace(500)).map(range(500)).ok
    assert 0.9 < time.perf_counter() - began < 1.9  # twice as long if each stage counted them


@pytest.mark.parametrize("executor", ["serial", "thread"])
def test_an_interrupt_ends_a_wait_at_once(executor, looks_every):
    looks_every(60)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))

    def closed():
        timer.start()
        return 0.0

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt) as caught:
        operations.doubles.using(executor=executor, throttle=closed).map(range(10))
    timer.join()
    assert time.monotonic() - began < 10
    assert caught.value.report.stopped == "interrupted"


@pytest.mark.parametrize("executor", ["serial", "thread"])
def test_a_wait_takes_no_cpu(executor, quick_looks):
    began = time.process_time()
    operations.doubles.using(executor=executor, throttle=ClosedFor(8)).map(range(10))
    assert time.process_time() - began < 0.3


def test_nothing_is_asked_when_nothing_is_left(quick_looks):
    asked = []
    sleeps = pooled_operation(time.sleep, executor="thread", workers=3, transaction=None, chunksize=1, progress=False)
    sleeps.using(throttle=lambda: asked.append(1)).map(seconds for seconds in (0.3, 0.6))
    assert len(asked) == 1


def test_what_a_throttle_raises_at_first_ends_the_run():
    with pytest.raises(ZeroDivisionError) as caught:
        operations.doubles.using(executor="thread", throttle=lambda: 1 / 0).map(range(10))
    assert caught.value.report.succeeded == 0


def test_an_answer_that_is_none_ends_the_run():
    with pytest.raises(InvalidOption, match="and it gave 'much'"):
        operations.doubles.using(executor="thread", throttle=lambda: "much").map(range(10))


def test_the_bar_shows_the_reason_until_it_is_gone(quick_looks):
    shown = []

    class Bar:
        def __init__(self, **_unused):
            pass

        def update(self, _count):
            pass

        def set_postfix(self, *, refresh, **postfix):
            shown.append(postfix)

        def close(self):
            pass

    operations.doubles.using(executor="serial", throttle=ClosedFor(2), progress=Bar).map(range(3))
    assert shown == [{"throttled": "closed"}, {}]


def test_the_log_tells_of_a_held_run(caplog, quick_looks):
    with caplog.at_level(logging.WARNING, "poolsave"):
        operations.doubles.using(executor="serial", throttle=ClosedFor(3)).map(range(3))
    (record,) = caplog.records
    assert record.getMessage() == "doubles held: closed"
    assert (record.poolsave_event, record.poolsave_share, record.poolsave_reason) == ("throttled", 0.0, "closed")


def test_the_report_tells_for_how_long_and_why(tmp_path, quick_looks):
    report = operations.doubles.using(executor="serial", throttle=ClosedFor(2)).map(range(3))
    (row,) = report.throttled
    line = f"  throttled: {row.seconds:.1f} s by ClosedFor, {row.held:.1f} s of these without anything new: closed"
    assert line in str(report).splitlines()
    report.to_json(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["throttled"][0]["reason"] == "closed"
    assert "throttled" not in str(operations.doubles.using(executor="serial").map(range(3)))


def test_throttles_come_from_settings_by_their_paths(settings):
    settings.POOLSAVE = {"throttle": ["tests.api.test_throttles.never"]}
    with pytest.raises(InvalidOption, match="and it gave 'never'"):
        operations.doubles.using(executor="serial").map([1])


def never():
    return "never"


def test_tests_in_one_thread_do_not_wait():
    with serial_saves():
        assert operations.doubles.using(throttle=lambda: 0.0).map([1]).ok


@pytest.mark.parametrize("throttle", [3, "22:00-06:00", [Pace(5), 3], Pace, [Hours]])
def test_what_is_no_throttle_is_refused(throttle):
    with pytest.raises(InvalidOption, match=r"throttle=.* is not valid: give a list such as"):
        Options(throttle=throttle)


def test_one_throttle_needs_no_list():
    assert Options(throttle=Pace(5)).throttle == (Pace(5),)


def test_stages_do_not_contradict_one_another():
    slow, slower = operations.doubles.using(throttle=Pace(5)), operations.doubles.using(throttle=Pace(1))
    with pytest.raises(InvalidOption, match="it is one for the whole run"):
        (slow | slower).map([1])
