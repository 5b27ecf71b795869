"""Samples in the caller's thread say nothing of the work before they know its locks, which cost nothing until then."""

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
