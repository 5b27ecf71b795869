"""What a durable run promises and refuses: COMMIT, callbacks, write-behind, and where it is only at least once."""

import os
import signal
import time
from functools import partial

import pytest
from django.core.management import call_command
from django.db import connection, connections, transaction
from django.db.models import F
from django.test import override_settings

from poolsave import (
    InsideTransaction,
    InvalidOperation,
    InvalidOption,
    Run,
    concurrent_saves,
    current,
    pooled_operation,
)
from tests.models import Person, Tag, Thing
from tests.support.durable import counts, counts_input, entries, ledger, make_things, visited

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


@pooled_operation(progress=False, workers=2, start_method="fork", databases=("postgres",))
def creates_slowly(item):
    """To commit these people takes PostgreSQL a second. The first worker dies in that COMMIT."""
    if item["name"] == "slow" and not os.path.exists(item["path"]):
        open(item["path"], "w").close()
        pid = os.getpid()
        if os.fork() == 0:
            os.setsid()
            time.sleep(0.4)
            os.kill(pid, signal.SIGKILL)
            os._exit(0)
    Person.objects.using("postgres").create(name=item["name"])


@pytest.mark.parametrize("mode", ["chunk", "object"])
@pytest.mark.usefixtures("slow_commit")
def test_ledger_says_what_a_worker_dead_in_its_commit_did(mode, tmp_path):
    items = [{"name": name, "path": str(tmp_path / "killed")} for name in ("one", "slow", "two", "three")]
    run = Run("dead", key=lambda item: item["name"])
    report = creates_slowly.using(transaction=mode, chunksize=2).map(items, run=run)
    assert (report.succeeded, report.lost, report.run.status) == (4, 0, "finished")
    assert sorted(Person.objects.using("postgres").values_list("name", flat=True)) == ["one", "slow", "three", "two"]
    assert os.path.exists(tmp_path / "killed")
    assert len(report.flawed) >= 1  # its value was lost with the worker


def act(key, how):
    if how == "raises":
        raise ValueError(f"mail server is gone at {current().key}")
    if how == "dies":
        os.kill(os.getpid(), signal.SIGKILL)


@pooled_operation(progress=False, workers=2, start_method="fork", databases=("postgres",))
def acts_afterwards(row, how=None):
    row.visits = F("visits") + 1
    row.save(update_fields=["visits"])
    transaction.on_commit(partial(act, row.pk, how.get(row.pk)), using="postgres")


@pytest.mark.parametrize("mode", ["chunk", "object"])
def test_callbacks_that_fail_or_are_swallowed_are_told_of(mode):
    rows = make_things("postgres", 12)
    operation = acts_afterwards.using(transaction=mode, chunksize=3)
    report = operation.bind(how={4: "raises", 11: "dies"}).map(rows, run="callbacks")
    assert visited("postgres") == dict.fromkeys(range(1, 13), 1)
    assert (report.succeeded, report.lost) == (12, 0)
    run, ranges, failures = ledger("postgres", "callbacks")
    assert (run.status, ranges) == ("finished with failures", [("", "12", 12, 0, 0)])
    assert {each.kind for each in failures} == {"callback"}
    told = {each.key: each.message for each in failures}
    assert told["4"] == "mail server is gone at callbacks:4"
    assert "its on_commit callbacks may not have run" in told["11"]
    assert set(told) <= {"4", "10", "11", "12"}  # those of its transaction, of which it is not known
    assert operation.bind(how={4: "raises", 11: "dies"}).map(rows, run=Run("callbacks", retry={})).total == 0


@pooled_operation(progress=False, workers=2, start_method="fork", databases=("postgres",), transaction="chunk")
def tags(row, kills=()):
    Tag(name=f"tag {row.pk}").save(using="postgres")
    row.visits += 1
    row.save()
    if row.pk in kills and not Thing.objects.using("default").filter(pk=row.pk).exists():
        Thing(pk=row.pk).save(using="default")
        os.kill(os.getpid(), signal.SIGKILL)


def test_rows_that_wait_go_out_before_that_of_the_ledger():
    rows = make_things("postgres", 30)
    report = tags.using(batch_writes=True, chunksize=10).bind(kills=(15,)).map(rows, run="batched")
    assert (report.succeeded, report.lost) == (30, 0)
    assert visited("postgres") == dict.fromkeys(range(1, 31), 1)
    assert Tag.objects.using("postgres").count() == 30
    assert ledger("postgres", "batched")[1] == [("", "30", 30, 0, 0)]
    assert report.statistics.batching is not None


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"transaction": None}, "with transaction=None the ledger's row is in no transaction of the work"),
        ({"databases": ("second",)}, "the ledger is in 'postgres', and the work in"),
        ({"databases": ("postgres", "second")}, "no COMMIT comprises all of"),
    ],
)
def test_at_least_once_is_said_or_refused(options, why):
    rows = [{"pk": pk} for pk in range(1, 21)]
    make_things("postgres", 20)
    operation = counts_input.using(**options, chunksize=3, executor="serial").bind(alias="postgres")
    run = Run("loose", using="postgres", key=lambda row: row["pk"])
    with pytest.raises(InvalidOption, match=why):
        operation.map(rows, run=Run("loose", using="postgres", key=run.key, exactly_once=True))
    report = operation.map(rows, run=run)
    assert (report.run.exactly_once, report.run.status) == (False, "finished")
    assert "at least once, not exactly once" in str(report)
    assert [each[2:] for each in ledger("postgres", "loose")[1]] == [(20, 0, 0)]
    assert operation.map(rows, run=run).total == 0


@pytest.mark.parametrize("executor", ["serial", "process"])
def test_run_inside_a_transaction_is_refused(executor):
    rows = make_things("postgres", 3)
    with transaction.atomic(using="postgres"), pytest.raises(InsideTransaction):
        counts.using(databases=("postgres",), executor=executor).map(rows, run="nested")
    assert sum(visited("postgres").values()) == 0


def test_what_cannot_be_durable_is_refused():
    rows = make_things("default", 3)
    durable = counts.using(run="no")
    with pytest.raises(InvalidOption, match="a stream cannot be durable; use map"), durable.stream(rows) as outcomes:
        list(outcomes)
    with pytest.raises(InvalidOption, match="a pipeline cannot be durable"):
        (durable | counts).map(rows)
    with pytest.raises(InvalidOption, match="a block cannot be durable"), concurrent_saves(run="no"):
        pass
    with pytest.raises(InvalidOption, match="an input that is not a queryset is told apart by keys"):
        counts.map([1, 2], run="no")
    with pytest.raises(InvalidOption, match="rows of a queryset have their primary keys"):
        counts.map(rows, run=Run("no", key=len))
    with pytest.raises(InvalidOption, match="a durable run keeps no order of keys"):
        counts.using(key=str).map([1], run=Run("no", key=str))
    with pytest.raises(InvalidOption, match="give a text or a whole number"):
        counts_input.map([{"pk": 1}], run=Run("no", key=dict))
    assert not visited("default")[1]


@override_settings(POOLSAVE={"run": "all"})
def test_name_for_all_runs_of_a_project_is_refused():
    with pytest.raises(InvalidOption, match="is not valid: each durable run has a name of its own"):
        counts.map([])


def test_missing_tables_and_app_are_named():
    rows = make_things("second", 3)
    with (
        override_settings(INSTALLED_APPS=["tests"]),
        pytest.raises(InvalidOperation, match="needs tables of its own: add"),
    ):
        counts.using(databases=("second",)).map(rows, run="none")
    call_command("migrate", "poolsave_ledger", "zero", database="second", verbosity=0)
    try:
        with pytest.raises(InvalidOperation, match="migrate poolsave_ledger --database=second"):
            counts.using(databases=("second",)).map(rows, run="none")
    finally:
        call_command("migrate", "poolsave_ledger", database="second", verbosity=0)
    assert connections["second"] is not connection


def test_empty_table_and_rows_that_vanish_come_to_an_end():
    rows = Thing.objects.using("postgres").all()
    operation = counts.using(databases=("postgres",), chunksize=5)
    assert operation.map(rows, run="empty").run.status == "finished"
    make_things("postgres", 20)
    gone = iter([lambda: rows.filter(pk__in=[17, 20]).delete()])
    report = operation.using(window=2, chunksize=1, workers=1).map(
        rows, run="vanishing", on_outcome=lambda outcome: next(gone, bool)()
    )
    assert (report.run.done, report.run.skipped, report.run.status) == (18, 2, "finished")
    assert ledger("postgres", "vanishing")[1] == [("", "20", 18, 0, 2)]
    assert entries("postgres") == [pk for pk in range(1, 20) if pk != 17]


def test_run_whose_last_rows_have_gone_comes_to_an_end():
    rows = make_things("postgres", 20)
    stopped = counts.using(databases=("postgres",), chunksize=1, window=2, max_failures=1)
    rows.filter(pk=8).update(group=5)
    stopped.map(rows, run="shortened")
    rows.filter(pk__gt=8).delete()
    report = stopped.map(rows, run="shortened")
    assert report.run.status == "finished with failures"
    assert len(ledger("postgres", "shortened")[1]) == 1
