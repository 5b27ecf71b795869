"""Tasks of a queue work on a run slice by slice, whether the queue delivers them once, twice, late, or never again.

The backend keeps what is enqueued, and the tests deliver it. What is right is the number of visits that rows count.
"""

import importlib.util
import signal
from importlib import import_module

import django
import pytest

from poolsave.ledger import control
from tests import backfills
from tests.conftest import wait_until
from tests.support.working import Worker, session_number, some_are_done, things, visits

PACKAGE = "django.tasks" if django.VERSION >= (6,) else "django_tasks"
if importlib.util.find_spec(PACKAGE) is None:
    pytest.skip(f"{PACKAGE} is not installed", allow_module_level=True)

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")
SIZE = 40


@pytest.fixture
def queue(settings, monkeypatch):
    """Those tasks that were enqueued."""
    settings.TASKS = {"default": {"BACKEND": f"{PACKAGE}.backends.dummy.DummyBackend"}}
    settings.POOLSAVE = {"runner": "poolsave.ledger.tasks.enqueue", "slice": 0.1, "executor": "serial"}
    monkeypatch.setattr("poolsave._durable.bookkeeping.INTERVAL", 0.02)
    results = import_module(PACKAGE).default_task_backend.results
    results.clear()
    yield results
    results.clear()


def named(queue, name):
    return [result for result in queue if result.task.func.__name__ == name]


def deliver(result):
    result.task.call(*result.args, **result.kwargs)


def begin(registered, alias):
    things(alias, SIZE)
    name = registered("slow", backfills.count_slowly, alias)
    control.start(name, using=alias)
    return name


def test_each_slice_enqueues_the_next_until_the_end(alias, registered, queue):
    name = begin(registered, alias)
    slices = 0
    while tasks := named(queue, "work_slice"):
        queue.clear()
        (task,) = tasks
        deliver(task)
        slices += 1
    assert slices > 2
    assert visits(alias) == [1] * SIZE
    assert control.find_run(name, using=alias).status == "finished"


def test_a_task_that_is_delivered_again_does_nothing(registered, queue):
    name = begin(registered, "default")
    (first,) = named(queue, "work_slice")
    deliver(first)
    number, done = session_number("default", name), visits("default")
    assert 0 < sum(done) < SIZE
    (_first, second) = named(queue, "work_slice")
    deliver(first)
    assert (session_number("default", name), visits("default")) == (number, done)
    assert len(named(queue, "work_slice")) == 2
    deliver(second)
    assert sum(visits("default")) > sum(done)


def test_while_a_task_works_another_delivery_does_nothing(registered, queue, settings):
    settings.POOLSAVE = {**settings.POOLSAVE, "slice": 60}
    things("default", 2)
    name = registered("nested", delivers_again, "default")
    control.start(name)
    delivers_again.func.tasks = named(queue, "work_slice")
    delivers_again.func.tasks[0].task.call(*delivers_again.func.tasks[0].args)
    assert visits("default") == [1, 1]
    assert session_number("default", name) == 2


@backfills.poolsave.pooled_operation(executor="serial", transaction=None, progress=False)
def delivers_again(thing):
    for task in delivers_again.func.tasks:
        deliver(task)
    backfills.count_visit(thing)


class Deliverer(Worker):
    """A process of a queue that was given one task."""

    def __init__(self, alias, task):
        self.task = task
        super().__init__(alias)

    def run(self):
        deliver(self.task)


@pytest.mark.parametrize("by", ["the same task again", "a watch"])
def test_a_run_whose_queue_worker_was_killed_goes_on(alias, registered, queue, settings, by):
    settings.POOLSAVE = {**settings.POOLSAVE, "slice": 60}
    name = begin(registered, alias)
    (task,) = named(queue, "work_slice")
    deliverer = Deliverer(alias, task)
    wait_until(some_are_done(alias))
    deliverer.kill(signal.SIGKILL)
    assert 0 < sum(visits(alias)) < SIZE
    queue.clear()
    if by == "a watch":
        watch_of(task, alias, name)
    else:
        deliver(task)
    assert sum(visits(alias)) < SIZE  # it has only been made due, and enqueued
    (following,) = named(queue, "work_slice")
    deliver(following)
    assert visits(alias) == [1] * SIZE


def watch_of(task, alias, name):
    """Deliver what the killed process had enqueued, in its own memory, to look after it."""
    watch = import_module("poolsave.ledger.tasks").watch
    watch.call(name, alias, task.args[2] + 1)


def test_a_watch_is_deferred_and_ends_with_its_turn(registered, queue):
    name = begin(registered, "default")
    deliver(named(queue, "work_slice")[0])
    (watch,) = named(queue, "watch")
    assert watch.task.run_after is not None
    queue.clear()
    deliver(watch)
    assert list(queue) == []  # the turn has ended in order
    number = session_number("default", name)
    watch.task.call(name, "default", number)
    assert [result.args[2] for result in queue] == [number]  # it looks again while the turn lasts


def test_a_run_that_was_paused_or_is_gone_is_left_alone(registered, queue):
    name = begin(registered, "default")
    (task,) = named(queue, "work_slice")
    control.pause(name)
    deliver(task)
    control.forget(name)
    deliver(task)
    assert sum(visits("default")) == 0


def test_a_backend_that_runs_tasks_at_once_works_to_the_end(registered, settings, queue):
    settings.TASKS = {"default": {"BACKEND": f"{PACKAGE}.backends.immediate.ImmediateBackend"}}
    name = begin(registered, "default")
    assert visits("default") == [1] * SIZE
    assert session_number("default", name) == 2
    assert control.find_run(name).status == "finished"
