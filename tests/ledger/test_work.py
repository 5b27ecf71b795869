"""What is due is worked on by one process each, whoever else works, and goes on after any death, exactly once.

What is right is the number of visits that each row of a table counts: one for each run.
"""

import io
import signal

import pytest
from django.core.management import CommandError, call_command

from poolsave.errors import StatusConflict
from poolsave.ledger import control, registry
from poolsave.ledger.models import Run
from poolsave.ledger.work import work, work_on
from tests import backfills
from tests.conftest import wait_until
from tests.support.working import Worker, session_number, some_are_done, things, visits

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")
SIZE = 60


def test_of_two_at_once_one_takes_each_run(alias, registered):
    things(alias, 20)
    names = [registered(f"run-{number}", backfills.count_visit, alias) for number in range(6)]
    for name in names:
        control.start(name, using=alias)
    workers = [Worker(alias) for _ in range(2)]
    found = [worker.names() for worker in workers]
    assert sorted(found[0] + found[1]) == names
    assert visits(alias) == [6] * 20
    assert {session_number(alias, name) for name in names} == {2}
    assert set(Run.objects.using(alias).values_list("status", flat=True)) == {"finished"}


def test_a_run_whose_process_was_killed_goes_on_at_once(alias, registered):
    things(alias, SIZE)
    name = registered("slow", backfills.count_slowly, alias)
    control.start(name, using=alias)
    worker = Worker(alias)
    wait_until(some_are_done(alias))
    worker.kill(signal.SIGKILL)
    assert control.find_run(name, using=alias).status == "running"
    assert 0 < sum(visits(alias)) < SIZE
    work(once=True, using=alias, workers=2)
    assert visits(alias) == [1] * SIZE
    assert control.find_run(name, using=alias).status == "finished"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_stopped_leaves_its_run_due(alias, registered, signum):
    things(alias, SIZE)
    name = registered("slow", backfills.count_slowly, alias)
    control.start(name, using=alias)
    worker = Worker(alias)
    wait_until(some_are_done(alias))
    worker.kill(signum)
    assert worker.process.exitcode not in (0, -signum)  # it has ended in order
    assert control.find_run(name, using=alias).status == "due"
    work(once=True, using=alias, executor="serial")
    assert visits(alias) == [1] * SIZE


class Shell(Worker):
    """The command, as in a shell."""

    def run(self):
        call_command("poolsave", "work", stdout=io.StringIO(), stderr=io.StringIO())


def test_ctrl_c_ends_the_command_with_130(registered):
    things("default", SIZE)
    control.start(registered("slow", backfills.count_slowly.using(executor="serial"), "default"))
    shell = Shell("default")
    wait_until(some_are_done("default"))
    shell.kill(signal.SIGINT)
    assert shell.process.exitcode == 130
    assert control.find_run("slow").status == "due"


def test_runs_take_turns_by_slices(registered, monkeypatch):
    monkeypatch.setattr("poolsave._durable.bookkeeping.INTERVAL", 0.02)
    things("default", 30)
    for name in ("a", "b"):
        control.start(registered(name, backfills.count_slowly, "default"))
    ended = []
    work(once=True, seconds=0.1, executor="serial", ended=lambda run: ended.append((run.name, run.status)))
    names = [name for name, _status in ended]
    assert names[:4] == ["a", "b", "a", "b"]
    assert ended[0] == ("a", "due")
    assert visits("default") == [2] * 30
    assert {run.status for run in Run.objects.all()} == {"finished"}


def test_a_run_that_was_paused_a_moment_ago_is_not_begun(alias, registered):
    things(alias, 3)
    name = registered("slow", backfills.count_slowly, alias)
    run = control.start(name, using=alias)  # as another process has read it
    control.pause(name, by="ada", using=alias)
    with pytest.raises(StatusConflict, match="it is not due"):
        registry.find_backfill(name).run(run, only_due=True)
    assert work_on(name, using=alias) is None
    assert visits(alias) == [0] * 3


def test_a_pause_keeps_who_asked_for_it(alias, registered):
    things(alias, 400)
    name = registered("slow", backfills.count_slowly, alias)
    control.start(name, using=alias)
    worker = Worker(alias)
    wait_until(some_are_done(alias))
    control.pause(name, by="ada", using=alias)
    assert worker.names() == [name]
    run = control.find_run(name, using=alias)
    assert (run.status, run.stop_code, run.stop_reason) == ("paused", "operator", "paused by ada")
    assert 0 < sum(visits(alias)) == run.done < 400


def test_a_run_that_cannot_begin_is_paused_and_says_why(monkeypatch):
    control.start("count-group", {"group": "1"})
    Run.objects.update(parameters={"group": "x"})
    control.start("count-visits")
    monkeypatch.delitem(registry._registered, "count-visits")
    work(once=True)
    reasons = dict(Run.objects.values_list("name", "stop_reason"))
    assert reasons["count-group"].startswith("InvalidParameters: the parameters of the backfill 'count-group'")
    assert reasons["count-visits"].startswith("UnknownBackfill: there is no backfill 'count-visits'")
    assert set(Run.objects.values_list("status", "stop_code")) == {("paused", "error")}
    with pytest.raises(CommandError, match=r"paused \(error\)") as caught:
        call_command("poolsave", "status", "count-group")
    assert caught.value.returncode == 3


def test_work_on_one_run_leaves_the_others(capsys):
    things("default", 3)
    control.start("count-group", {"group": "0", "by": "7"})
    control.start("count-visits")
    call_command("poolsave", "work", "count-group")
    assert visits("default") == [7] * 3
    assert list(control.due().values_list("name", flat=True)) == ["count-visits"]
    assert "count-group: finished" in capsys.readouterr().out
    with pytest.raises(CommandError, match="'count-group' is finished, so that there is nothing to work on"):
        call_command("poolsave", "work", "count-group")
