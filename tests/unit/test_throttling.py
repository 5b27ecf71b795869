"""The least share of all throttles rules, a throttle that is gone holds the run, and a pace is kept exactly."""

import math
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from django.db import OperationalError
from django.utils import timezone

from poolsave import InvalidOption
from poolsave._engine import throttling
from poolsave._engine.sizing import WorkerSizing
from poolsave._engine.throttling import Gauge, Pacer, ThrottleMeter
from poolsave.throttles import Hours, Pace, _reading, hours
from poolsave.throttles._reading import RunView, Trail
from poolsave.throttles.replica_lag import ReplicaLag, _LogReader
from tests.support import operations


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    found = SimpleNamespace(now=1000.0)
    for module in (throttling, _reading):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


def answers(*values):
    """A throttle that gives these, or raises them."""
    left = iter(values)

    def gives():
        value = next(left)
        if isinstance(value, Exception):
            raise value
        return value

    return gives


def look(meter, clock):
    clock.now += 1
    return meter.slots(8, 4)


@pytest.mark.parametrize(
    ("share", "slots"), [(None, 8), (1, 8), (1.0, 8), (0.99, 4), (0.5, 2), (0.26, 2), (0.01, 1), (0, 0), (0.0, 0)]
)
def test_a_share_of_the_workers_gets_chunks(clock, share, slots):
    assert look(ThrottleMeter([lambda: share], RunView()), clock) == slots


def test_the_least_share_rules_and_tells_why(clock):
    meter = ThrottleMeter([lambda: (0.5, "half"), lambda: (0.25, "quarter"), lambda: None], RunView())
    assert look(meter, clock) == 1
    assert (meter.share, meter.reason) == (0.25, "quarter")


def test_throttles_are_asked_once_a_second(clock):
    asked = []
    meter = ThrottleMeter([lambda: asked.append(clock.now)], RunView())
    for _ in range(35):
        meter.slots(8, 4)
        clock.now += 0.1
    assert asked == pytest.approx([1000, 1001, 1002, 1003])


def test_a_wait_ends_when_the_next_look_is_due(clock):
    meter = ThrottleMeter([answers(0.0, 1.0)], RunView())
    assert meter.wait_time() is None
    look(meter, clock)
    clock.now += 0.25
    assert meter.wait_time() == pytest.approx(0.75)
    look(meter, clock)
    assert meter.wait_time() is None


def test_held_counts_from_the_first_look_without_a_break(clock):
    meter = ThrottleMeter([answers(0.0, 0.0, 0.5, 0.0, 0.0)], RunView())
    held = []
    for _ in range(5):
        look(meter, clock)
        clock.now += 0.5
        held.append(meter.held)
    assert held == [0.5, 2.0, 0.0, 0.5, 2.0]


def test_the_summary_has_seconds_and_the_lowest_reason(clock):
    first, second = answers(None, (0.5, "half"), (0.0, "none"), None), answers(0.25, None, None, None)
    meter = ThrottleMeter([first, second], RunView())
    for _ in range(4):
        look(meter, clock)
    clock.now += 10
    rows = [(row.seconds, row.held, row.reason) for row in meter.summary()]
    assert rows == [(2.0, 1.0, "none"), (1.0, 0.0, "answers.<locals>.gives gives 0.25")]


def test_a_throttle_that_was_never_read_warns_once(clock):
    meter = ThrottleMeter([answers(*[OperationalError("no server")] * 5)], RunView())
    with pytest.warns(RuntimeWarning, match="gives cannot be read.*OperationalError: no server") as warnings:
        assert [look(meter, clock) for _ in range(5)] == [8] * 5
    assert len(warnings) == 1
    assert meter.summary() == ()


@pytest.mark.filterwarnings("ignore:the throttle")
def test_a_throttle_that_was_never_read_is_asked_less_often(clock):
    asked = []

    def fails():
        asked.append(int(clock.now))
        if clock.now < 1060:
            raise OperationalError("no server")
        return 0.0

    meter = ThrottleMeter([fails], RunView())
    slots = [look(meter, clock) for _ in range(100)]
    assert asked[:5] == [1001, 1002, 1003, 1034, 1065]
    assert slots[64:] == [0] * 36


def test_a_throttle_that_is_gone_three_times_holds(clock):
    gone = OperationalError("no server")
    meter = ThrottleMeter([answers(0.5, gone, gone, 0.5, gone, gone, ValueError("bug"), gone, 1.0)], RunView())
    assert [look(meter, clock) for _ in range(7)] == [2] * 6 + [0]
    assert meter.reason == "answers.<locals>.gives can no longer be read: ValueError: bug"
    assert [look(meter, clock) for _ in range(2)] == [0, 8]


def test_the_first_look_raises_what_is_no_servers_fault(clock):
    with pytest.raises(ZeroDivisionError):
        Gauge(lambda: 1 / 0, RunView()).look()


@pytest.mark.parametrize("answer", [2, -0.1, "half", True, math.nan, (0.5,), (None, 1, 2), object()])
def test_an_answer_that_is_none_is_refused(answer):
    with pytest.raises(InvalidOption, match="a throttle gives None, a share from"):
        Gauge(lambda: answer, RunView()).look()


def test_no_worker_is_added_while_a_throttle_slows(monkeypatch):
    asked = []
    monkeypatch.setattr(WorkerSizing, "maybe_resize", lambda _sizing, **figures: asked.append(figures))
    doubles = operations.doubles.using(executor="thread", workers=(1, 4))
    doubles.using(throttle=lambda: 0.9).map(range(100))
    assert asked == []
    doubles.map(range(100))
    assert asked


@pytest.mark.parametrize("size", [1, 7, 50])
def test_a_pace_is_kept_on_average(clock, size):
    pacer, sent = Pacer(Pace(100)), 0
    while clock.now < 1010:
        delay = pacer.delay()
        if delay is None:
            pacer.started(size)
            sent += size
        else:
            clock.now += delay
    assert 1000 <= sent <= 1000 + size


def test_a_late_engine_catches_up_half_a_second(clock):
    pacer = Pacer(Pace(100))
    clock.now += 100
    sent = 0
    while pacer.delay() is None:
        pacer.started(1)
        sent += 1
    assert sent == pytest.approx(51, abs=1)


@pytest.mark.parametrize("pace", [500, 0.5, 12.5])
def test_an_automatic_chunk_is_a_tenth_of_a_second(pace):
    assert Pacer(Pace(pace)).most_at_once == max(1, int(pace / 10))


@pytest.mark.parametrize("objects", [0, -1, "500", True, math.inf, math.nan, None])
def test_a_wrong_pace_is_refused(objects):
    with pytest.raises(InvalidOption, match="give a number of objects per second above 0"):
        Pace(objects)


@pytest.mark.parametrize(
    ("times", "open_at"),
    [
        ("22:00-06:00", {"21:59": False, "22:00": True, "00:00": True, "05:59": True, "06:00": False}),
        ("9:30 - 17:00", {"09:29": False, "09:30": True, "16:59": True, "17:00": False}),
        ("18:00-24:00", {"17:59": False, "18:00": True, "23:59": True, "00:00": False}),
        ("18:00-00:00", {"17:59": False, "18:00": True, "23:59": True, "00:00": False}),
        ("00:00-24:00", {"00:00": True, "12:00": True, "23:59": True}),
    ],
)
def test_hours_are_open_by_the_projects_clock(monkeypatch, settings, times, open_at):
    settings.TIME_ZONE = "Asia/Kolkata"  # 5:30 ahead of UTC
    for time, is_open in open_at.items():
        hour, minute = map(int, time.split(":"))
        local = datetime(2026, 6, 1, hour, minute, 30, tzinfo=timezone.get_default_timezone())
        monkeypatch.setattr(hours, "datetime", SimpleNamespace(now=local.astimezone(UTC).astimezone))
        assert Hours(times)() == (None if is_open else (0.0, f"it is {time}, outside of {times}"))


@pytest.mark.parametrize(
    "times", ["", "22-6", "22:00", "25:00-06:00", "22:60-06:00", "06:00-06:00", "24:00-06:00", "06:00-24:01", 22, None]
)
def test_wrong_hours_are_refused(times):
    with pytest.raises(InvalidOption, match='as in "22:00-06:00"'):
        Hours(times)


def test_a_trail_tells_how_far_a_mark_is_behind(clock):
    trail = Trail()
    for mark in (10, 20, 30):
        trail.note(mark)
        clock.now += 1
    assert trail.behind(5) is None  # it was passed before the trail began
    assert trail.behind(10) == pytest.approx(2.5)
    assert trail.behind(25) == pytest.approx(1.5)
    assert trail.behind(30) == 0
    clock.now += 100
    assert trail.behind(30) == 0
    trail.note(30)
    trail.note(40)
    assert trail.behind(30) == 0


@pytest.mark.parametrize(
    ("behind", "share"), [(0, 1), (1, 1), (1.5, 8.5 / 9), (5.5, 0.5), (10, 0), (11, 0), (10**9, 0)]
)
def test_the_share_falls_from_soft_to_hard(behind, share):
    assert ReplicaLag("replica", soft=1, hard=10)._answer(behind)[0] == pytest.approx(share)


def test_a_long_transaction_does_not_look_like_lag(clock):
    """The last commit that was replayed is long ago, though the standby has nearly everything."""
    reader = _LogReader(ReplicaLag("replica"))
    for written in range(100, 1000, 100):
        reader._trail.note(written)
        assert reader._behind(written - 50, 600.0) <= (600 if written == 100 else 0.5)
        clock.now += 1


def test_a_standby_that_has_everything_is_not_behind(clock):
    reader = _LogReader(ReplicaLag("replica"))
    reader._trail.note(100)
    clock.now += 600
    assert reader._behind(100, 600.0) == 0
