"""Executors by name, by instance, and by strangers; and where processes are impossible."""

import concurrent.futures
import threading
import warnings

import pytest

from poolsave import InvalidOption, executors
from poolsave.executors import registry
from tests import operations


def test_a_registered_name_makes_a_fresh_executor_per_run(monkeypatch):
    made = []

    def factory(**settings):
        made.append(settings)
        return executors.SerialExecutor()

    monkeypatch.setattr(registry, "_factories", dict(registry._factories))
    executors.register("mine", factory)
    operation = operations.doubles.using(executor="mine", start_method="fork")
    assert operation.map([1]).values == operation.map([1]).values == [2]
    assert made == [{"start_method": "fork"}] * 2


def test_packages_publish_executors_as_entry_points(monkeypatch):
    from importlib.metadata import EntryPoint

    entry = EntryPoint("theirs", "poolsave.executors:SerialExecutor", "poolsave.executors")
    monkeypatch.setattr(registry, "_published", lambda: {"theirs": entry})
    assert operations.doubles.using(executor="theirs").map([4]).values == [8]


def test_a_stranger_s_executor_needs_no_knowledge_of_django():
    class Reversed(executors.SerialExecutor):
        """Runs the newest task first."""

        def submit(self, task):
            self._tasks.appendleft(task)

    assert operations.doubles.using(executor=Reversed(), chunksize=2).map(range(9)).values == list(range(0, 18, 2))
    with pytest.raises(InvalidOption):
        operations.doubles.using(executor=object())


def test_an_executor_of_the_caller_is_not_shut_down():
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        assert operations.doubles.using(executor=executor).map([1]).values == [2]
        assert executor.submit(pow, 2, 3).result(30) == 8


def test_an_executor_that_was_shut_down_skips_everything_and_says_so():
    executor = concurrent.futures.ThreadPoolExecutor(2)
    executor.shutdown()
    report = operations.doubles.using(executor=executor).map(range(10))
    assert report.succeeded == 0
    assert report.skipped == report.total >= 1
    assert "after shutdown" in report.stopped
    assert not report.ok


@pytest.mark.django_db(transaction=True, databases=["default", "postgres"])
def test_a_forked_process_pool_of_the_caller_shares_no_connection(alias):
    import multiprocessing

    from django.db import connections

    from tests.models import Person

    connections[alias].ensure_connection()
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as executor:
        operation = operations.save_person.using(executor=executor, databases=(alias,)).bind(alias=alias)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            report = operation.map([f"p{number}" for number in range(20)])
    assert report.ok
    assert Person.objects.using(alias).count() == 20


def test_fork_is_chosen_only_while_one_thread_is_alive():
    from poolsave.executors._starting import choose_start_method

    assert choose_start_method(None) == "fork"
    assert choose_start_method("spawn") == "spawn"
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait)
    thread.start()
    try:
        assert choose_start_method(None) == "forkserver"
    finally:
        leave.set()
        thread.join()


def test_a_pool_in_a_daemonic_worker_uses_threads_and_warns():
    report = operations.nested.using(start_method="fork").map([1])
    (failure,) = report.failures  # a warning is an error in these tests
    assert isinstance(failure.error, RuntimeWarning)
    assert "daemonic" in str(failure.error)


def test_a_pool_in_a_thread_works():
    assert operations.doubles.using(executor="thread").map([1, 2]).values == [2, 4]


def test_workers_are_never_more_than_there_are_chunks():
    names = operations.process_and_thread.using(executor="thread", workers=50).map(range(3)).values
    assert len({name for _pid, name in names}) <= 3
