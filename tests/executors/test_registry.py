"""`executor=` takes a name, an instance or another package's executor; where none can be started it says so."""

import concurrent.futures
import os
import threading
import warnings

import pytest

from poolsave import InvalidOption, concurrent_saves, executors
from poolsave.executors import registry
from tests.support import operations


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


def test_executor_that_was_shut_down_raises_and_skips_all():
    executor = concurrent.futures.ThreadPoolExecutor(2)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown") as caught:
        operations.doubles.using(executor=executor).map(range(10))
    report = caught.value.report
    assert report.skipped == report.total >= 1
    with pytest.raises(RuntimeError, match="after shutdown"):
        with concurrent_saves(executor=executor, transaction=None) as saves:
            saves.submit(operations.doubles, 1)
    assert saves.report.skipped == 1


@pytest.mark.parametrize(
    "executor", [executors.SerialExecutor(), executors.ThreadExecutor(), executors.ProcessExecutor(start_method="fork")]
)
def test_executor_instance_serves_one_run_after_another(executor):
    """Two at once are refused."""
    operation = operations.kills_itself if isinstance(executor, executors.ProcessExecutor) else operations.doubles
    for _ in range(2):
        report = operation.using(executor=executor, chunksize=1).map(range(8))
        assert report.succeeded == (7 if operation is operations.kills_itself else 8)
    with concurrent_saves(executor=executor, transaction=None) as saves:
        assert saves.submit(operations.doubles, 4).result(30) == 8
        with pytest.raises(RuntimeError, match="running already"):
            operations.doubles.using(executor=executor).map(range(3))


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_forked_pool_of_the_caller_shares_no_connection(alias):
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


def test_fork_is_chosen_only_while_one_thread_is_alive(monkeypatch):
    from poolsave.executors.processes import start_methods
    from poolsave.executors.processes.start_methods import choose_start_method

    # Libraries that other tests import may have started threads of their own, as numpy's does.
    monkeypatch.setattr(start_methods, "native_threads", threading.active_count)
    # And they may have reloaded a module that the fork server has imported.
    monkeypatch.setattr(start_methods, "_has_outdated_modules", lambda: False)
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


@pytest.mark.parametrize("inner", ["process", "process-pool"])
def test_a_pool_in_a_daemonic_worker_uses_threads_and_warns(inner):
    report = operations.nested.using(start_method="fork").bind(inner=inner).map([1])
    (failure,) = report.failures  # a warning is an error in these tests
    assert isinstance(failure.error, RuntimeWarning)
    assert "daemonic" in str(failure.error)
    assert repr(inner) in str(failure.error)


def test_a_pool_in_a_thread_works():
    assert operations.doubles.using(executor="thread").map([1, 2]).values == [2, 4]


def test_workers_are_never_more_than_there_are_chunks():
    names = operations.process_and_thread.using(executor="thread", workers=50).map(range(3)).values
    assert len({name for _pid, name in names}) <= 3


def test_serial_task_that_is_interrupted_is_reported_afterwards():
    class Session:
        def run(self, payload, marks, reply):
            raise KeyboardInterrupt

        def close(self):
            pass

    class Job:
        def open(self):
            return Session()

    executor = executors.SerialExecutor()
    executor.start(Job(), workers=1, longest=1)
    executor.submit(executors.Task(1, [], 1))
    with pytest.raises(KeyboardInterrupt):
        executor.wait(0)
    (event,) = executor.wait(0)
    assert isinstance(event, executors.Broken)
    assert event.begun
    executor.stop()


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_pep_3148_executor_needs_no_knowledge_of_poolsave(alias):
    """executorlib's, which works over sockets and by cloudpickle."""
    from tests.models import Person

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own use of pydantic
        import executorlib

        with executorlib.SingleNodeExecutor(max_workers=2, block_allocation=True) as executor:
            operation = operations.save_person.using(executor=executor, databases=(alias,), keep="all")
            report = operation.bind(alias=alias, fail=("p3",)).map([f"p{number}" for number in range(20)])
    assert [failure.item for failure in report.failures] == ["p3"]
    assert report.succeeded == Person.objects.using(alias).count() == 19
    assert os.getpid() not in {outcome.worker for outcome in report}
