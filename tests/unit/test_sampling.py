"""Samples in the caller's thread say nothing of the work before they know its locks, which cost nothing until then."""

import pytest

from poolsave import pooled_operation
from poolsave._auto import sampling
from poolsave._auto.sampling import LocalSamples, SamplingSerialExecutor


def take(samples, executor, *, took, ran=0.0, held=0.0):
    executor.ran += ran
    if executor.locks is not None:
        executor.locks.held += held
    samples.take([object()], 1, took, executor)


def test_locks_are_watched_before_a_decision_and_not_earlier():
    samples, executor = LocalSamples(), SamplingSerialExecutor()
    for _ in range(3):
        take(samples, executor, took=0.003)
        assert executor.locks is None
    take(samples, executor, took=0.003)
    assert executor.locks is not None


def test_samples_are_ready_once_their_locks_are_known():
    samples, executor = LocalSamples(), SamplingSerialExecutor()
    take(samples, executor, took=0.001, ran=0.001)
    take(samples, executor, took=0.2, ran=0.2)
    assert not samples.fresh, "its locks were not watched"
    take(samples, executor, took=0.1, ran=0.08, held=0.02)
    assert samples.fresh
    assert samples.measured(10).locked == 0.25
    assert executor.locks is None


def test_locks_of_an_earlier_measurement_do_not_count():
    executor = SamplingSerialExecutor()
    take(LocalSamples(), executor, took=1.0)
    samples = LocalSamples()
    take(samples, executor, took=1.0, ran=1.0, held=1.0)
    take(samples, executor, took=1.0, ran=1.0, held=0.5)
    assert samples.measured(10).locked == 0.5


def test_a_run_that_ends_long_before_a_decision_is_not_measured(monkeypatch):
    """Nothing is left to decide when the last chunk runs, and locks are watched only when a decision is near."""
    read, operation = [], pooled_operation(executor="auto", transaction=None, progress=False)(str)
    operation.map([0]).raise_if_failed()
    monkeypatch.setattr(sampling, "WATCH_AFTER", 60)
    monkeypatch.setattr(sampling.WriteLockTimer, "watching", lambda _timer: pytest.fail("locks are watched"))
    monkeypatch.setattr(sampling.time, "process_time", lambda: read.append("CPU clock") or 0.0)
    operation.map([1]).raise_if_failed()
    assert not read
    operation.map([2, 3, 4]).raise_if_failed()
    assert len(read) == 2, "before and after the first of two chunks"
