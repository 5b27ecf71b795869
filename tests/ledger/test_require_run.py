"""A migration that needs a durable run is refused with its figures, until the run is finished without failures."""

import pytest
from django.apps import apps
from django.db import connections
from django.db.migrations.state import ProjectState
from django.db.migrations.writer import OperationWriter
from django.utils import timezone

from poolsave.errors import InsideTransaction, InvalidOperation, RunUnfinished, UnknownBackfill
from poolsave.ledger.models import Failure, Lease, Run
from poolsave.migrations import RequireRun
from tests import backfills
from tests.models import Thing
from tests.support.working import things, visits

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")
Status = Run.Status


def migrate(operation, alias="default", *, atomic=False):
    state = ProjectState.from_apps(apps)
    with connections[alias].schema_editor(atomic=atomic) as editor:
        operation.database_forwards("tests", editor, state, state)


def make(status, alias="default", **values):
    run = Run.objects.using(alias).create(name="count-visits", status=status, **values)
    Lease.objects.using(alias).create(run=run)
    return run


def test_a_table_without_rows_requires_nothing(alias):
    migrate(RequireRun("count-visits"), alias)
    migrate(RequireRun("count-visits", finish=True), alias)
    assert not Run.objects.using(alias).exists()


def test_a_run_that_has_not_begun_is_required(alias):
    Thing.objects.using(alias).create()
    with pytest.raises(RunUnfinished, match="'count-visits', which is not started"):
        migrate(RequireRun("count-visits"), alias)


@pytest.mark.parametrize("status", [Status.FINISHED, Status.FINISHED_WITH_FAILURES])
def test_a_finished_run_is_enough(alias, status):
    Thing.objects.using(alias).create()
    make(status, alias)
    migrate(RequireRun("count-visits"), alias)


@pytest.mark.parametrize("status", sorted(set(Status.values) - {"finished", "finished with failures"}))
def test_any_other_status_is_refused_with_figures(status):
    Thing.objects.create()
    make(status, done=1200, failed=3, total=5000, stop_reason="paused by ada")
    with pytest.raises(RunUnfinished, match="1,203 of 5,000") as caught:
        migrate(RequireRun("count-visits"))
    assert caught.value.status == status


def test_unresolved_failures_are_refused_and_counted():
    Thing.objects.create()
    run = make(Status.FINISHED_WITH_FAILURES)
    for key in "12":
        Failure.objects.create(run=run, key=key, cause="c", error_class="E")
    with pytest.raises(RunUnfinished, match="with 2 unresolved failures"):
        migrate(RequireRun("count-visits"))
    Failure.objects.update(resolved_at=timezone.now(), resolution="forgotten")
    migrate(RequireRun("count-visits"))


def test_without_a_backfill_the_model_says_whose_rows_it_needs():
    with pytest.raises(UnknownBackfill):
        migrate(RequireRun("gone"))
    with pytest.raises(InvalidOperation, match=r'give model="app_label\.Model"'):
        migrate(RequireRun("count-group"))
    migrate(RequireRun("gone", model="Thing"))
    migrate(RequireRun("gone", model="tests.Thing"))
    Thing.objects.create()
    with pytest.raises(RunUnfinished):
        migrate(RequireRun("gone", model="Thing"))


def test_in_an_atomic_migration_it_is_not_finished():
    Thing.objects.create()
    make(Status.DUE)
    with pytest.raises(InsideTransaction, match="atomic = False"):
        migrate(RequireRun("count-visits", finish=True), atomic=True)
    assert Run.objects.get().status == "due"


@pytest.mark.parametrize("status", [None, Status.DUE, Status.PAUSED, Status.RUNNING])
def test_finish_runs_what_is_left(alias, registered, status):
    things(alias, 5)
    registered("count-visits", backfills.count_visit, alias)
    if status is not None:
        make(status, alias)  # RUNNING: without a heartbeat, so that its process counts as dead
    migrate(RequireRun("count-visits", finish=True), alias)
    migrate(RequireRun("count-visits"), alias)
    assert visits(alias) == [1] * 5


def test_finish_does_not_hide_failures(registered):
    things("default", 2, group=1)
    things("default", 3)
    registered("three", backfills.fail_in_three_ways, "default")
    with pytest.raises(RunUnfinished, match=r"finished with failures .* with 2 unresolved failures"):
        migrate(RequireRun("three", finish=True))
    assert visits("default", group=0) == [1] * 3


def test_it_is_written_as_it_was_made():
    operation = RequireRun("articles-slug", finish=True, model="Article", elidable=False)
    text, imports = OperationWriter(operation, indentation=0).serialize()
    assert imports == {"import poolsave.migrations"}
    scope = {"poolsave": __import__("poolsave.migrations")}
    assert eval(text.rstrip(","), scope).deconstruct() == operation.deconstruct()
    assert operation.describe() == "Finish the durable run articles-slug"
    assert operation.migration_name_fragment == "require_articles_slug"


def test_going_back_does_nothing():
    Thing.objects.create()
    state = ProjectState.from_apps(apps)
    with connections["default"].schema_editor(atomic=False) as editor:
        RequireRun("count-visits").database_backwards("tests", editor, state, state)
    assert RequireRun("count-visits").reversible
