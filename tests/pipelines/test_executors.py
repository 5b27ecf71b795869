"""Each stage has its executor; what cannot work is refused before a worker starts."""

import pytest
from django.db import transaction

from poolsave import (
    InsideTransaction,
    InvalidOperation,
    InvalidOption,
    executors,
    pooled_operation,
)
from tests.support import stages
from tests.support.stages import FORK, SERIAL, THREAD

with_database = pytest.mark.django_db(transaction=True)


@with_database
def test_pipeline_is_refused_before_any_worker_starts():
    from django.db import transaction

    begun = []

    @pooled_operation(transaction=None, progress=False, **THREAD)
    def begins(number):
        begun.append(number)

    with transaction.atomic(), pytest.raises(InsideTransaction):
        (begins.using(databases=()) | stages.saves_name).map([1])
    with pytest.raises(InvalidOption, match="timeout"):
        (begins | stages.doubles.using(timeout=1, **THREAD)).map([1])
    with pytest.raises(InvalidOperation, match="pickled"):
        (
            stages.doubles.using(before_fork=lambda: begun.append("a worker"), **FORK)
            | begins.using(executor="process", start_method="forkserver")
        ).map([1])
    assert begun == []


def test_executor_instance_runs_neighbouring_stages_only():
    mine = executors.ThreadExecutor()
    fine = (stages.doubles | stages.doubles).using(executor=mine)
    assert fine.map([1]).values == [4]
    with pytest.raises(InvalidOption, match="at the same time"):
        (stages.doubles.using(executor=mine) | stages.doubles.using(**SERIAL) | stages.names.using(executor=mine)).map(
            [1]
        )


def test_processes_are_forked_before_threads_are_started():
    """A lambda reaches only a worker that was forked, which by default happens only beside no other thread."""
    shout = pooled_operation(transaction=None, progress=False, workers=2)(lambda number: f"{number}!")
    report = (stages.doubles.using(**THREAD) | shout).map([1])
    assert report.values == ["2!"]


class Foreign:
    """An executor with the methods of the protocol, and nothing else that a selector could wait for."""

    def __init__(self):
        self._threads = executors.ThreadExecutor()
        for name in ("shares_memory", "inline", "enforces_timeout", "blames_exactly", "can_kill", "at_most_once"):
            setattr(self, name, getattr(self._threads, name))
        for name in ("start", "submit", "wait", "wake", "halt", "kill", "stop"):
            setattr(self, name, getattr(self._threads, name))

    @property
    def workers(self):
        return self._threads.workers


def test_executor_without_a_file_descriptor_is_polled():
    pipeline = stages.doubles.using(executor=Foreign()) | stages.names.using(**FORK)
    assert pipeline.map(range(3)).values == ["name 0", "name 2", "name 4"]


def test_check_speaks_for_every_stage():
    odd = pooled_operation(transaction=None, start_method="forkserver")(lambda number: number)
    messages = (stages.doubles | odd).check([1])
    assert [(message.id, message.obj) for message in messages] == [("poolsave.E002", "<lambda>")]


@pytest.mark.parametrize("name", ["process-pool", "thread", "serial"])
def test_any_executor_can_run_a_stage(name):
    pipeline = (
        stages.doubles.using(**THREAD, workers=1) | stages.doubles.using(executor=name) | stages.names.using(**FORK)
    )
    assert pipeline.map(range(4)).values == [f"name {4 * number}" for number in range(4)]


@with_database
def test_auto_runs_a_stage_in_processes_where_they_are_possible():
    pipeline = (stages.doubles | stages.names).using(executor="auto", transaction=None, workers=2)
    expected = [f"name {2 * number}" for number in range(10)]
    assert pipeline.map(range(10)).values == expected
    with transaction.atomic():  # which no worker could see
        assert pipeline.map(range(10)).values == expected
