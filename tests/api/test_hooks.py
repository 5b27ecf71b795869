"""`before_fork` and `after_fork` run around the start of each worker process, those of replacements included."""

import os

import pytest
from django.db import connections

from poolsave import InvalidOption, concurrent_saves
from tests.support import hooks, operations, pools

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


@pytest.fixture(autouse=True)
def _forget_notes():
    hooks.take("before")
    hooks.take("after")


BOTH = {"before_fork": hooks.notes_before, "after_fork": [hooks.notes_after]}


def test_hooks_run_before_and_after_each_fork(start_method):
    pids = set(
        operations.process_and_thread.using(start_method=start_method, chunksize=1, **BOTH).map(range(30)).values
    )
    assert [pid for pid, _ in hooks.take("before")] == [os.getpid()]
    after = hooks.take("after")
    assert len({pid for pid, _ in after}) == len(after) == 2
    assert {pid for pid, _thread in pids} <= {pid for pid, _ in after}
    assert {name for _, name in after} == {str(connections["default"].settings_dict["NAME"])}


def test_block_calls_hooks_when_it_is_entered(start_method):
    with concurrent_saves(start_method=start_method, workers=1, transaction=None, **BOTH) as saves:
        assert [pid for pid, _ in hooks.take("before")] == [os.getpid()]
        pid = saves.submit(os.getpid).result(30)
        assert [pid for pid, _ in hooks.take("after")] == [pid]


def test_after_fork_comes_before_the_first_object(start_method):
    hooks.saves_after_hook.using(start_method=start_method, workers=1, **BOTH).map(["a", "b"]).raise_if_failed()


def test_hooks_run_for_a_replacement(start_method):
    operation = hooks.dies_when_told.using(start_method=start_method, workers=1, chunksize=1, **BOTH)
    first, second = operation.map([1, "die", 2]).values
    assert first != second
    assert [pid for pid, _ in hooks.take("before")] == [os.getpid()] * 2
    assert [pid for pid, _ in hooks.take("after")] == [first, second]


@pytest.mark.parametrize("executor", ["thread", "serial"])
def test_hooks_are_not_called_without_processes(executor):
    assert operations.doubles.using(executor=executor, **BOTH).map([1, 2]).ok
    assert hooks.take("before") == hooks.take("after") == []


def test_hooks_run_once_per_process_of_a_foreign_executor():
    for name in ("ProcessPoolExecutor", "loky"):
        with pools.foreign(name, max_workers=1) as options:  # each is a fresh interpreter
            for _run in range(2):
                assert operations.doubles.using(**options, chunksize=1, **BOTH).map(range(8)).ok
        assert len(hooks.take("after")) == 1
        assert [pid for pid, _ in hooks.take("before")] == [os.getpid()] * 2


def test_before_fork_error_is_raised_before_anything_starts(start_method):
    read = []
    operation = operations.doubles.using(
        start_method=start_method, before_fork=hooks.fails, after_fork=hooks.notes_after
    )
    with pytest.raises(ConnectionRefusedError):
        operation.map(read.append(number) or number for number in range(3))
    with pytest.raises(ConnectionRefusedError):
        concurrent_saves(start_method=start_method, before_fork=hooks.fails).__enter__()
    assert read == hooks.take("after") == []


def test_after_fork_error_is_a_worker_that_cannot_start(start_method):
    operation = operations.doubles.using(start_method=start_method, after_fork=hooks.fails)
    with pytest.raises(ConnectionRefusedError, match="no broker") as caught:
        operation.map(range(3))
    report = caught.value.report
    assert (report.total, report.succeeded) == (report.skipped, 0)


@pytest.mark.parametrize("block", [False, True])
def test_before_fork_error_at_a_replacement_ends_the_run(block):
    options = {"workers": 1, "chunksize": 1, "start_method": "fork", "before_fork": hooks.FailsLater()}
    if block:
        with (
            pytest.raises(ConnectionRefusedError, match="no broker"),
            concurrent_saves(**options, transaction=None) as saves,
        ):
            futures = [saves.submit(hooks.dies_when_told, item) for item in (1, "die", 2, 3)]
        assert futures[0].result()
        assert futures[1].exception()
        report = saves.report
    else:
        with pytest.raises(ConnectionRefusedError, match="no broker") as caught:
            hooks.dies_when_told.using(**options).map([1, "die", 2, 3])
        report = caught.value.report
    assert (report.succeeded, report.lost) == (1, 1)
    assert report.total == 2 + report.skipped


def test_thread_that_before_fork_ends_does_not_prevent_fork():
    metrics = hooks.Metrics()
    factor = 3
    operation = operations.pooled_operation(transaction=None, workers=2, progress=False)(lambda number: factor * number)
    try:
        assert operation.using(before_fork=metrics.stop).map([1, 2]).values == [3, 6], "a closure needs fork"
    finally:
        metrics.stop()


def test_settings_name_them_by_dotted_paths(settings):
    settings.POOLSAVE = {
        "before_fork": "tests.support.hooks.notes_before",
        "after_fork": ["tests.support.hooks.notes_after"],
        "carry": ["tests.models.actor"],
    }
    assert operations.doubles.map([1]).ok
    assert len(hooks.take("before")) == len(hooks.take("after")) == 1
    settings.POOLSAVE = {"after_fork": ["tests.support.hooks.missing"]}
    with pytest.raises(
        InvalidOption, match=r"after_fork='tests.support.hooks.missing' \(from settings.POOLSAVE\).*imported"
    ):
        operations.doubles.map([1])


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_hook_that_workers_cannot_find_is_refused_at_once(method):
    with pytest.raises(InvalidOption, match="top of one"):
        operations.doubles.using(start_method=method, after_fork=lambda: None).map([1])
    assert operations.doubles.using(start_method="fork", after_fork=lambda: None).map([1]).ok
