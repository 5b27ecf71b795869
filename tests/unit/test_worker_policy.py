"""How many workers a run has, with figures that are given and not measured."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolsave._engine.worker_policy import FEWEST, FULL, GAIN, OVERLOADED, SLOWER, Window, WorkerPolicy

shares = st.floats(0, 1)
windows = st.builds(
    Window,
    now=st.floats(0, 1000),
    rate=st.floats(0.01, 1e6),
    computing=shares,
    in_line=shares,
    busy=shares,
    left=st.integers(1, 10**7),
    chunks=st.integers(1, 10**7),
    start=st.floats(0, 5),
    overloaded=st.booleans(),
)


@st.composite
def policies(draw):
    """As they are after some windows."""
    least = draw(st.integers(1, 16))
    most = draw(st.integers(least, 64))
    in_turn = draw(st.booleans())
    cpus = 1 if in_turn else draw(st.integers(1, 16))
    policy = WorkerPolicy(workers=least, least=least, most=most, cpus=cpus, in_turn=in_turn)
    for window in draw(st.lists(windows, max_size=6)):
        policy = policy.after(window)
    return policy


def window(rate=100, *, computing=0.1, now=0.0, left=10**6, chunks=10**6, **more):
    return Window(now=now, rate=rate, computing=computing, left=left, chunks=chunks, **more)


def policy(workers=2, least=2, most=32, cpus=2):
    return WorkerPolicy(workers=workers, least=least, most=most, cpus=cpus)


def far(workers, compute=0.001, wait=0.009, cpus=2, **more):
    """A window of so many workers, as queueing at the CPUs gives it at best."""
    rate = min(workers / (compute + wait), cpus / compute)
    computing, waiting = rate * compute / workers, rate * wait / workers
    return window(rate, computing=computing, in_line=1 - computing - waiting, **more)


@given(policies(), windows)
def test_the_number_stays_within_its_bounds(before, found):
    assert before.least <= before.after(found).workers <= before.most


@given(policies(), windows)
def test_workers_that_compute_are_not_made_more(before, found):
    after = before.after(found)
    if after.workers > before.workers:
        undone = before.before is not None and after.workers == before.before[0]
        used = before.workers * found.computing < before.cpus or (before.in_turn and after.workers <= FEWEST)
        assert undone or (used and found.busy >= 0.5)


@given(policies(), windows)
def test_an_overloaded_server_never_gets_more_workers(before, found):
    after = before.after(found)
    if found.overloaded and found.now < before.grace_until:
        assert after.workers == before.workers
    elif found.overloaded:
        assert after.workers == max(before.least, before.workers // 2)
        assert after.reason == OVERLOADED


@given(policies(), windows)
def test_growth_follows_growth_only_if_it_has_paid(before, found):
    if before.before is not None and before.after(found).workers > before.workers > before.before[0]:
        assert found.rate > before.before[1] * (1 + GAIN)


@given(policies(), windows, st.floats(0, 1000))
def test_nothing_is_tried_while_it_rests(before, found, since):
    rested = before.refused(found.now, before.workers)
    later = Window(now=found.now + since, rate=1.0, computing=0.0, left=10**6, chunks=10**6)
    if rested.before is None and since < before.pause:
        assert rested.after(later).workers == rested.workers


@given(policies(), windows)
def test_no_more_workers_than_chunks_are_added(before, found):
    after = before.after(found)
    if after.workers > before.workers and after.before is not None:
        assert after.workers <= found.chunks


@pytest.mark.parametrize(
    ("workers", "computing", "wanted"),
    [(2, 0.05, 32), (2, 0.1, 30), (2, 0.2, 15), (2, 0.25, 12), (2, 0.5, 6), (2, 0.85, 2), (8, 0.16, 18), (8, 0.25, 8)],
)
def test_the_longer_workers_wait_the_more_there_are(workers, computing, wanted):
    """Half as many again as would keep both CPUs busy, unless they are nearly so already."""
    assert policy(workers).after(window(computing=computing)).workers == wanted


@pytest.mark.parametrize(
    ("workers", "computing", "wanted"),
    [(2, 0.1, 30), (2, 0.25, 12), (2, 0.6, 4), (2, 0.85, 2), (3, 0.5, 4), (4, 0.3, 4), (8, 0.2, 8)],
)
def test_threads_that_take_turns_are_more(workers, computing, wanted):
    threads = WorkerPolicy(workers=workers, least=2, most=32, cpus=1, in_turn=True)
    assert threads.after(window(computing=computing)).workers == wanted


@pytest.mark.parametrize(("computing", "in_line", "wanted"), [(0.4, 0.6, 3), (0.5, 0.375, 3), (0.1, 0.5, 15)])
def test_time_in_line_for_a_busy_machine_is_left_out(computing, in_line, wanted):
    """What an object waits for elsewhere decides, and the CPUs that others use get their workers, too."""
    assert policy().after(window(computing=computing, in_line=in_line)).workers == wanted


def test_reason_says_for_how_long_they_waited():
    assert policy().after(window(computing=0.17)).reason == "since they waited for 83% of their time"


def test_growth_that_did_not_pay_stays_and_is_not_followed():
    grown = policy(cpus=1).after(window(100))
    undone = thrice(grown, window(104, now=1))
    assert (grown.workers, undone.workers, undone.reason) == (15, 2, "since 15 were no faster")
    assert undone.after(window(104, now=2)).workers == 2
    assert undone.after(window(104, now=3)).workers == 15


def thrice(before, found):
    """One or two slow windows prove nothing."""
    for _ in range(2):
        before, workers = before.after(found), before.workers
        assert before.workers == workers
    return before.after(found)


def test_one_fast_window_keeps_a_growth():
    grown = policy(cpus=1).after(window(100))
    for rate in (90, 90, 106, 106):
        grown = grown.after(window(rate, now=1))
    assert grown.workers == 15
    assert grown.before is None


def test_four_workers_stay():
    """Else a machine with more to do for a moment would keep a run from its share of the CPUs."""
    undone = thrice(policy().after(window(100)), window(89, now=1))
    assert (undone.workers, undone.reason) == (4, "since 30 were no faster")
    grown = policy().after(window(100, computing=0.3, in_line=0.6))
    kept = thrice(grown, window(89, now=1))
    assert (grown.workers, kept.workers, kept.reason) == (4, 4, grown.reason)
    assert thrice(policy(8, least=8, cpus=8).after(window(100)), window(89, now=1)).workers == 8


def test_pauses_double():
    rested = thrice(policy(cpus=1).after(window(100)), window(89, now=0))
    again = thrice(rested.after(window(100, now=6)), window(89, now=6))
    assert again.workers == 2
    assert again.after(window(100, now=9)).workers == 2
    assert again.after(window(100, now=10)).workers > 2


def test_a_rate_that_falls_has_fewer_tried_and_kept():
    grown = policy().after(window(100, computing=0.25))
    grown = grown.after(window(200, computing=0.25, now=1))
    assert grown.workers == 12
    fewer = thrice(grown, window(50, now=20))
    assert (fewer.workers, fewer.reason) == (6, SLOWER)
    assert fewer.after(window(50, now=21)).workers == 6
    assert thrice(fewer, window(40, now=21)).workers == 12


def test_time_outs_of_one_moment_count_once():
    now = policy(workers=16)
    for instant in (0.0, 0.1, 0.5, 0.9):
        now = now.after(window(now=instant, overloaded=True))
        assert (now.workers, now.pause) == (8, 4.0)
    assert now.after(window(now=1.5, overloaded=True)).workers == 4
    assert now.after(window(now=3.0)).workers > 8


def test_pauses_end_at_a_minute():
    now = policy()
    for minute in range(50):
        now = now.after(window(now=100.0 * minute, overloaded=True))
    assert now.after(window(now=4900 + 61.0)).workers > 2


def test_a_slow_input_is_not_a_slow_server():
    assert policy().after(window(busy=0.3)).workers == 2


def test_little_that_is_left_is_not_worth_a_start():
    """Work of 0.4, 4 and 40 s for one worker, and starts of 0.05 s, two at once."""
    left = (20, 200, 2000)
    assert [policy().after(window(100, left=each, start=0.05)).workers for each in left] == [2, 8, 28]


def test_a_full_server_ends_the_growth_where_it_is():
    grown = policy().after(window(100))
    partly = grown.refused(1.0, 5)
    assert (partly.workers, partly.reason) == (5, FULL)
    refused = grown.refused(1.0, 2)
    assert refused.workers == 2
    assert refused.after(window(100, now=2)).workers == 2


@pytest.mark.parametrize("wait", [0.002, 0.005, 0.02, 0.1])
def test_ends_near_the_best_number(wait):
    now = policy()
    for second in range(2):
        now = now.after(far(now.workers, wait=wait, now=float(second)))
    best = max(far(workers, wait=wait).rate for workers in range(2, 33))
    assert far(now.workers, wait=wait).rate >= 0.9 * best
