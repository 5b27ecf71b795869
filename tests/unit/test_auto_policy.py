"""The decisions of `executor="auto"`, with figures that are given and not measured."""

import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from poolsave._auto.policy import LocalMeasurement, PoolEstimate, max_speedup, should_keep_pool, should_start_pool

seconds = st.floats(1e-6, 10)
shares = st.floats(0, 1)
measurements = st.builds(
    LocalMeasurement,
    samples=st.integers(1, 50),
    seconds=st.floats(0.04, 100),
    evidence=st.just(0.0) | st.floats(0.04, 100),
    per_object=seconds,
    computing=shares,
    locked=shares,
    left=st.integers(0, 10**7),
)
pools = st.builds(
    PoolEstimate,
    workers=st.integers(2, 64),
    most=st.just(0) | st.integers(2, 64),
    cpus=st.integers(1, 64),
    start=st.floats(0.01, 5),
    given_up=st.integers(0, 5),
    since=st.floats(0, 1000),
)


@given(measurements, pools)
def test_a_pool_is_never_worth_more_than_what_is_left(work, pool):
    go, _why = should_start_pool(work, pool)
    assert not go or work.left * work.per_object > pool.start


@given(measurements, pools, st.integers(0, 10**6))
def test_more_that_is_left_never_speaks_against_a_pool(work, pool, more):
    if should_start_pool(work, pool)[0]:
        assert should_start_pool(dataclasses.replace(work, left=work.left + more), pool)[0]


@given(measurements, pools, st.floats(0, 5))
def test_a_dearer_start_never_speaks_for_a_pool(work, pool, more):
    if should_start_pool(work, dataclasses.replace(pool, start=pool.start + more))[0]:
        assert should_start_pool(work, pool)[0]


@given(measurements, pools)
def test_a_bound_is_that_of_workers_cpus_and_locks(work, pool):
    bound = max_speedup(work, pool)
    assert 1 <= bound <= max(pool.workers, pool.most)
    if work.left * work.per_object < 0.5:
        assert bound <= pool.workers
    assert bound * work.locked <= 1 + 1e-9
    assert bound == 1 or bound * work.computing <= pool.cpus + 1e-9


@given(measurements, pools)
def test_a_pool_that_was_given_up_rests_before_it_is_tried_again(work, pool):
    assume(pool.given_up)
    go, _why = should_start_pool(work, dataclasses.replace(pool, since=0.0))
    assert not go


@given(seconds, st.integers(1, 10**6), st.floats(0.01, 100), pools)
def test_a_pool_that_is_faster_is_never_given_up(alone, objects, took, pool):
    keep, _why = should_keep_pool(alone, objects, took, left=None, pool=pool)
    if alone * objects >= 1.06 * took:
        assert keep is not False
    if keep:
        assert alone * objects >= 1.04 * took


TRIVIAL = LocalMeasurement(
    samples=8, seconds=0.06, evidence=0.05, per_object=0.0004, computing=0.6, locked=0.0, left=10_000
)
POOL = PoolEstimate(workers=2, cpus=2, start=0.04)


def test_many_trivial_saves_on_a_server_start_a_pool():
    assert should_start_pool(TRIVIAL, POOL)[0]
    assert not should_start_pool(dataclasses.replace(TRIVIAL, left=100), POOL)[0]


@pytest.mark.parametrize("locked", [0.3, 0.8])
def test_saves_inside_the_lock_of_sqlite_start_no_pool(locked):
    go, why = should_start_pool(dataclasses.replace(TRIVIAL, locked=locked), POOL)
    assert not go
    assert f"{locked:.0%} of each object's time goes by inside SQLite's one write lock" in why


def test_long_objects_may_hold_the_lock_for_some_of_their_time():
    longer = dataclasses.replace(TRIVIAL, per_object=0.01)
    assert should_start_pool(dataclasses.replace(longer, locked=0.3, left=1000), POOL)[0]
    assert not should_start_pool(dataclasses.replace(longer, locked=0.6, left=1000), POOL)[0]


def test_long_run_tries_a_pool_in_spite_of_the_lock():
    """It is so long that the trial costs next to nothing."""
    go, why = should_start_pool(dataclasses.replace(TRIVIAL, locked=0.8, left=1_000_000), POOL)
    assert go
    assert "a trial of a pool costs little" in why


def test_single_cpu_starts_a_pool_for_what_waits_only():
    single = dataclasses.replace(POOL, cpus=1)
    assert not should_start_pool(dataclasses.replace(TRIVIAL, computing=1.0), single)[0]
    assert should_start_pool(dataclasses.replace(TRIVIAL, computing=0.01), single)[0]


def test_first_objects_start_a_pool_only_if_they_took_long():
    first = dataclasses.replace(TRIVIAL, samples=1, evidence=0.0, per_object=0.05, seconds=0.05, left=100)
    assert not should_start_pool(first, POOL)[0]
    assert should_start_pool(dataclasses.replace(first, per_object=2.0, seconds=2.0), POOL)[0]


def test_pool_of_about_the_same_speed_is_measured_for_longer():
    assert should_keep_pool(0.001, 400, 0.2, left=None, pool=POOL)[0] is True
    assert should_keep_pool(0.001, 100, 0.2, left=None, pool=POOL)[0] is False
    assert should_keep_pool(0.001, 200, 0.2, left=None, pool=POOL)[0] is None
    assert should_keep_pool(0.001, 600, 0.6, left=None, pool=POOL)[0] is False
    assert should_keep_pool(0.001, 600, 0.61, left=10, pool=POOL)[0] is True
    assert should_keep_pool(1.0, 3, 30.0, left=None, pool=POOL)[0] is None


@pytest.mark.parametrize(("computing", "most", "starts"), [(0.1, 0, False), (0.1, 32, True), (0.9, 32, False)])
def test_work_that_waits_is_worth_a_pool_that_can_grow(computing, most, starts):
    """Ten objects of 0.2 s each: two workers save less than the start of a fresh process takes, many more save most."""
    work = LocalMeasurement(
        samples=2, seconds=0.4, evidence=0.2, per_object=0.2, computing=computing, locked=0.0, left=10
    )
    assert should_start_pool(work, PoolEstimate(workers=2, most=most, cpus=2, start=1.0))[0] is starts
