"""Beside the greenlets of gevent or eventlet nothing is forked: workers are started afresh, or refused."""

import sys
from types import SimpleNamespace

import pytest

from poolsave import InvalidOption, concurrent_saves
from poolsave.executors import ProcessExecutor, ProcessPoolExecutor
from poolsave.executors.processes.start_methods import choose_start_method
from tests.support import operations


@pytest.fixture(params=["gevent", "eventlet"])
def library(request, monkeypatch):
    """As if it had patched this process."""
    gevent, eventlet = SimpleNamespace(), SimpleNamespace()
    gevent.is_module_patched = eventlet.is_monkey_patched = lambda name: name == "select"
    modules = {"gevent": ("gevent.monkey", gevent), "eventlet": ("eventlet.patcher", eventlet)}
    monkeypatch.setitem(sys.modules, *modules[request.param])
    return request.param


@pytest.mark.parametrize("method", ["fork", "forkserver"])
@pytest.mark.parametrize("executor", ["process", "process-pool"])
def test_a_fork_beside_greenlets_is_refused_with_the_ways_out(library, executor, method):
    operation = operations.doubles.using(executor=executor, start_method=method)
    ways_out = rf'{library} has patched .* start_method="spawn" .* executor="thread"'
    for use in (
        lambda: operation.map([1]),
        lambda: operation.stream([1]),
        lambda: (operation | operation).map([1]),
        lambda: concurrent_saves(executor=executor, start_method=method, transaction=None).__enter__(),
    ):
        with pytest.raises(InvalidOption, match=ways_out):
            use()
    with pytest.raises(InvalidOption, match=ways_out):
        (ProcessExecutor if executor == "process" else ProcessPoolExecutor)(start_method=method)
    (message,) = operation.check()
    assert library in message.msg


def test_workers_are_started_afresh_there(library):
    assert choose_start_method(None) == choose_start_method("spawn") == "spawn"
    assert operations.doubles.using(workers=1).map([1, 2]).values == [2, 4]


def test_threads_and_serial_are_as_ever(library):
    for executor in ("thread", "serial"):
        assert operations.doubles.using(executor=executor).map([1]).values == [2]


def test_a_library_that_has_patched_nothing_does_not_matter(monkeypatch):
    idle = SimpleNamespace(is_module_patched=lambda _name: False, is_monkey_patched=lambda _name: False)
    monkeypatch.setitem(sys.modules, "gevent.monkey", idle)
    monkeypatch.setitem(sys.modules, "eventlet.patcher", idle)
    assert choose_start_method("fork") == "fork"
    ProcessExecutor(start_method="forkserver")
