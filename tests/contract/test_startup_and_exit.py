"""Workers that cannot be set up, a pool inside a worker, and an interpreter that exits with a pool open."""

import concurrent.futures
import os
import signal
import subprocess
import sys
import textwrap
import types

import psutil
import pytest

from poolsave import InsideTransaction, WorkerDied, executors, pooled_operation
from tests.conftest import wait_until
from tests.contract import cases
from tests.models import Person
from tests.support.pools import EXECUTORS, FOREIGN, foreign, goes_on


def here_only(number):
    return number


@pytest.fixture(params=["function", "constant"])
def needs_more_than_workers_have(request, monkeypatch):
    """An operation that cannot be restored in a worker that does not have the caller's memory, nor a copy of it."""
    if request.param == "constant":
        return cases.was_restored.bind(constant=cases.RaisesWhenRestored()), ValueError
    module = types.ModuleType("here_only")
    monkeypatch.setitem(sys.modules, "here_only", module)
    monkeypatch.setattr(here_only, "__module__", "here_only")
    module.here_only = pooled_operation(transaction=None, workers=2, progress=False)(here_only)
    return module.here_only, ModuleNotFoundError


def restores(pool):
    """Whether what workers need is restored there, and not shared or inherited."""
    return cases.was_restored.using(**pool).bind(constant=cases.Restored()).map([1]).values[0]


def least_fed(executor):
    """Dask's workers are set up before anything is sent."""
    return 0 if isinstance(executor, executors.DaskExecutor) else 1


def test_workers_that_cannot_be_set_up_end_the_run(pool, promises, needs_more_than_workers_have):
    operation, reason = needs_more_than_workers_have
    if not restores(pool):
        assert operation.using(**pool).map(range(10)).ok
        return
    with pytest.raises(reason) as caught:
        operation.using(**pool).map(range(10))
    report = caught.value.report
    assert report.total == report.skipped >= least_fed(promises)
    assert "could not be set up" in report.stopped
    assert str(caught.value)[:20] in report.stopped


def test_workers_that_die_in_their_set_up_end_the_run(pool, promises):
    """They are not replaced for ever."""
    operation = cases.was_restored.using(**pool).bind(constant=cases.KillsWhoRestoresIt())
    if not restores(pool):
        assert operation.map(range(10)).ok
        return
    with pytest.raises(WorkerDied if goes_on(promises) else concurrent.futures.BrokenExecutor) as caught:
        operation.map(range(10))
    report = caught.value.report
    assert report.total == report.lost + report.skipped >= least_fed(promises)
    if goes_on(promises):
        assert caught.value.exitcode == (5 if promises.blames_exactly else None)
        assert report.lost == 0


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_initializer_that_raises_ends_the_run_as_broken(name, tmp_path):
    """The executor is the caller's own, and so is what it raises."""
    operation = cases.leaves_a_trace.bind(folder=str(tmp_path), deadly=None)
    with foreign(name, initializer=exec, initargs=("raise ValueError",)) as pool:
        with pytest.raises(concurrent.futures.BrokenExecutor) as caught:
            operation.using(**pool).map(range(10))
    report = caught.value.report
    assert report.total == report.lost + report.skipped >= 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("inner", ["process", "thread", "serial"])
def test_a_pool_inside_a_worker_works(pool, inner):
    assert cases.maps_inside.using(**pool).bind(inner=inner).map([1, 2, 3]).values == [[2, 4]] * 3


def test_a_process_pool_inside_a_worker_works_or_ends_at_once(pool):
    """Python's own spawn cannot work in the workers of loky, which change the default start method."""
    report = cases.maps_inside.using(**pool).bind(inner="process-pool", workers=1).map([1])
    assert report.values == [[2, 4]] * report.succeeded
    assert report.ok or pool["executor"].__class__.__module__.startswith("loky.")
    assert all(isinstance(failure.error, concurrent.futures.BrokenExecutor) for failure in report.failures)


def test_a_block_inside_a_worker_works(pool):
    assert cases.opens_a_block_inside.using(**pool).map([1, 2, 3]).values == [[2, 4]] * 3


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_pool_inside_the_transaction_of_an_object_is_refused(pool, alias):
    report = cases.maps_inside_its_transaction.using(**pool, databases=(alias,)).bind(alias=alias).map(["outer"])
    (failure,) = report.failures
    assert isinstance(failure.error, InsideTransaction)
    assert not Person.objects.using(alias).exists()


OPEN_AT_EXIT = """
    import sys
    from poolsave import concurrent_saves, pooled_operation
    from tests.support.pools import EXECUTORS

    def double(number):
        return 2 * number

    operation = pooled_operation(transaction=None, workers=2, progress=False)(double)

    if __name__ == "__main__":
        import __main__
        __main__.double = operation
        found = EXECUTORS[sys.argv[1]]
        pool = (found.in_script or found.opened)()
        options = pool.__enter__()
        stream = operation.using(**options).stream(range(1000))
        next(stream)
        saves = concurrent_saves(transaction=None, workers=2, **options).__enter__()
        saves.submit(pow, 2, 2).result()
        print("leaving", flush=True)
"""


def exits(script, argument):
    """Run a script to its end; if it hangs, end it with what it has started."""
    environment = {key: value for key, value in os.environ.items() if key != "DJANGO_SETTINGS_MODULE"}
    environment["PYTHONPATH"] = os.getcwd()
    process = subprocess.Popen(
        [sys.executable, str(script), argument],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        told, errors = process.communicate(timeout=40)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, told, errors)


@pytest.mark.parametrize("name", EXECUTORS)
def test_exit_with_open_pools_leaves_no_process(tmp_path, name):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(OPEN_AT_EXIT))
    done = exits(script, name)
    assert done.stdout.strip() == "leaving", done.stderr
    assert done.returncode == 0
    told = str(script)
    wait_until(lambda: not any(told in " ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])))


KILLED_AT_EXIT = """
    import atexit
    import multiprocessing.util
    import os
    import signal
    import sys
    import time

    @atexit.register
    def kill():
        before = multiprocessing.active_children()
        for child in before:
            os.kill(child.pid, signal.SIGKILL)
        while executor.workers and not set(multiprocessing.active_children()) - set(before):
            time.sleep(0.01)
        print(len(before), "killed,", executor.workers, "left")

    from poolsave import concurrent_saves, executors

    if __name__ == "__main__":
        executor = executors.ProcessExecutor(start_method=sys.argv[1])
        block = concurrent_saves(transaction=None, workers=2, executor=executor)
        saves = block.__enter__()
        saves.submit(pow, 2, 2).result()
"""


def test_workers_that_end_at_exit_are_not_replaced(tmp_path, start_method):
    """multiprocessing would wait for ever for a worker that starts after it has ended the others."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(KILLED_AT_EXIT))
    done = exits(script, start_method)
    assert done.stdout.strip() == "2 killed, 0 left", done.stderr
    assert done.returncode == 0
