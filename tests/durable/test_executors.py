"""A durable run over other executors, and in a migration: each row exactly once, whatever dies."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from django.db import connections
from django.db.migrations.state import ProjectState

from poolsave import InsideTransaction, Run
from poolsave.migrations import RunPooled
from tests.support.durable import counts_unless_killed, entries, ledger, make_things, visited

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


def test_pool_of_somebody_else_that_breaks_pauses_the_run(tmp_path):
    rows = make_things("postgres", 30)
    operation = counts_unless_killed.using(databases=("postgres",), chunksize=6, workers=2, start_method=None)
    operation = operation.bind(folder=str(tmp_path), deadly=(9,))
    with ProcessPoolExecutor(2, mp_context=get_context("forkserver")) as pool, pytest.raises(Exception) as raised:
        operation.using(executor=pool).map(rows, run="broken")
    assert (raised.value.report.run.status, raised.value.report.lost) == ("paused", 0)
    assert raised.value.report.succeeded == sum(visited("postgres").values()) == len(entries("postgres"))
    report = operation.using(executor="process", start_method="fork").map(rows, run="broken")
    assert (report.lost, report.run.status) == (0, "finished")
    assert visited("postgres") == dict.fromkeys(range(1, 31), 1)
    assert ledger("postgres", "broken")[1] == [("", "30", 30, 0, 0)]


def count_visit(row):
    row.visits += 1
    row.save()


def test_migration_goes_on_where_it_stopped():
    rows = make_things("postgres", 20)
    operation = RunPooled(
        count_visit, queryset="tests.Thing", run=Run("migrated", using="postgres"), chunksize=3, start_method="fork"
    )
    state = ProjectState.from_apps(rows.model._meta.apps)
    with connections["postgres"].schema_editor(atomic=False) as editor:
        operation.database_forwards("tests", editor, state, state)
        operation.database_forwards("tests", editor, state, state)
    assert visited("postgres") == dict.fromkeys(range(1, 21), 1)
    assert ledger("postgres", "migrated")[0].status == "finished"
    with connections["postgres"].schema_editor(atomic=True) as editor, pytest.raises(InsideTransaction):
        operation.database_forwards("tests", editor, state, state)
