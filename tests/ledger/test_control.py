"""Whoever changes a run gets what its status allows, or an error that names the status; of two at once one wins.

What is right is the table of statuses in docs/howto/operate-durable-runs.md.
"""

import pickle
import threading
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connections, transaction
from django.utils import timezone

from poolsave.apps import check_settings
from poolsave.errors import InvalidOption, InvalidParameters, StatusConflict, UnknownBackfill, UnknownCause, UnknownRun
from poolsave.ledger import control
from poolsave.ledger.models import Chunk, Failure, Lease, Run
from tests.conftest import needs_mariadb, wait_until

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")
Status = Run.Status
LONG_AGO = timedelta(hours=1)


def make(name="count-visits", status=Status.PAUSED, using="default", **values):
    run = Run.objects.using(using).create(name=name, status=status, **values)
    Lease.objects.using(using).create(run=run, generation=3)
    return run


def fail(run, key="1", cause="E [23505] at a.py:1 in f", **values):
    values = {"error_class": "shop.E", "sqlstate": "23505", **values}
    return Failure.objects.using(run._state.db).create(run=run, key=key, cause=cause, **values)


ALLOWED = {
    control.pause: {"due": "paused", "running": "pausing"},
    control.resume: {"paused": "due"},
    control.cancel: {"due": "cancelled", "running": "cancelling", "pausing": "cancelling", "paused": "cancelled"},
}


@pytest.mark.parametrize("status", Status.values)
@pytest.mark.parametrize("change", ALLOWED, ids=lambda change: change.__name__)
def test_a_change_does_what_the_status_allows(change, status):
    now = timezone.now()
    make(status=status, started_at=now, heartbeat_at=now, stop_code="")
    expected = ALLOWED[change].get(status)
    if expected is None:
        with pytest.raises(StatusConflict, match=f"'count-visits' is {status}, so that it cannot be") as caught:
            change("count-visits")
        assert caught.value.status == status
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    else:
        assert change("count-visits", by="ada").status == expected
        assert "by ada" in Run.objects.get().stop_reason
    assert Run.objects.get().status == (expected or status)


@pytest.mark.parametrize("change", [*ALLOWED, control.forget, control.retry, control.find_run])
def test_a_run_that_is_not_there_is_answered_by_those_that_are(change):
    make("other")
    with pytest.raises(UnknownRun, match="no run 'none' in the database 'default': give one of 'other'"):
        change("none")


def test_start_makes_a_run_that_is_due():
    run = control.start("count-group", {"group": "2", "names": ["a"]}, by="ada")
    stored = Run.objects.get()
    assert (stored.pk, stored.status, stored.started_by) == (run.pk, "due", "ada")
    assert stored.parameters == {"group": "2", "names": ["a"]}
    assert list(control.due()) == [run]


def test_start_refuses_what_is_there_unknown_or_not_valid():
    control.start("count-visits")
    with pytest.raises(StatusConflict, match="'count-visits' is due, so that it cannot be started"):
        control.start("count-visits")
    with pytest.raises(UnknownBackfill):
        control.start("nothing")
    with pytest.raises(InvalidParameters):
        control.start("count-group", {"group": "x"})
    assert Run.objects.count() == 1


def test_a_run_between_two_slices_can_be_paused():
    make(stop_code="slice")
    assert control.due().exists()
    control.pause("count-visits")
    assert not control.due().exists()
    with pytest.raises(StatusConflict):
        control.pause("count-visits")


def test_a_cancelled_run_that_had_not_begun_has_ended():
    make(status=Status.DUE)
    assert control.cancel("count-visits").ended_at is not None
    make("running", status=Status.RUNNING)
    assert control.cancel("running").ended_at is None


def test_forget_deletes_the_run_and_nothing_of_others():
    for name in ("count-visits", "other"):
        run = make(name)
        Chunk.objects.create(run=run, sequence=1, high="1")
        fail(run)
    control.forget("count-visits")
    assert [model.objects.count() for model in (Run, Lease, Chunk, Failure)] == [1, 1, 1, 1]
    assert Failure.objects.get().run.name == "other"


@pytest.mark.parametrize("status", [Status.RUNNING, Status.PAUSING, Status.CANCELLING])
def test_what_a_process_works_on_is_not_forgotten(status):
    make(status=status)
    with pytest.raises(StatusConflict, match="cannot be forgotten"):
        control.forget("count-visits")
    assert Run.objects.count() == 1


@pytest.mark.parametrize(
    ("status", "after", "code"),
    [("running", "due", "died"), ("pausing", "paused", "operator"), ("cancelling", "cancelled", "operator")],
)
def test_a_run_whose_process_has_died_goes_where_it_was_bound(alias, status, after, code):
    now, code_before = timezone.now(), "" if status == "running" else "operator"
    run = make(
        using=alias, status=status, started_at=now - LONG_AGO, heartbeat_at=now - LONG_AGO, stop_code=code_before
    )
    live = make("live", using=alias, status=status, started_at=now - LONG_AGO, heartbeat_at=now)
    found = control.recover(using=alias)
    assert [(run.name, run.status, run.stop_code) for run in found] == [("count-visits", after, code)]
    assert (found[0].ended_at is not None) == (after == "cancelled")
    generations = dict(Lease.objects.using(alias).values_list("run_id", "generation"))
    assert generations == {run.pk: 4, live.pk: 3}


def test_a_run_that_died_before_its_first_heartbeat_is_recovered():
    make(status=Status.RUNNING, started_at=timezone.now() - LONG_AGO)
    assert len(control.recover()) == 1


def test_resume_takes_a_run_from_a_dead_process():
    make(status=Status.RUNNING, started_at=timezone.now() - LONG_AGO)
    assert control.resume("count-visits").status == "due"


def test_retry_chooses_by_cause_age_and_number(alias):
    run = make(using=alias, status=Status.FINISHED_WITH_FAILURES)
    old, *_others = [fail(run, key=str(number)) for number in range(4)]
    Failure.objects.using(alias).filter(pk=old.pk).update(created_at=timezone.now() - timedelta(days=9))
    fail(run, "other cause", "F at b.py:2 in g", sqlstate="", error_class="shop.deep.F", constraint="name_once")
    fail(run, "callback", kind=Failure.Kind.CALLBACK)
    fail(run, "resolved", resolved_at=timezone.now())

    def matching(**given):
        Run.objects.using(alias).update(status=Status.FINISHED_WITH_FAILURES, retry=None)
        return control.retry("count-visits", using=alias, **given)

    assert matching() == 5
    assert matching(cause="23505") == matching(cause="E [23505] at a.py:1 in f") == matching(cause="shop.E") == 4
    assert matching(cause="F") == matching(cause="shop.deep.F") == matching(cause="name_once") == 1
    with pytest.raises(UnknownCause):
        matching(cause="deep")
    assert matching(since=timedelta(days=7)) == 4
    assert matching(since=timezone.now() + timedelta(days=1)) == 0
    assert matching(keys=["1", "2", "resolved"]) == 2
    assert matching(keys=[]) == 0
    assert matching(cause="23505", limit=2) == 2
    stored = Run.objects.using(alias).get()
    chosen = control.failures_of(stored, stored.retry)
    assert [failure.key for failure in chosen] == ["0", "1"]
    fail(run, "since then")
    assert [failure.key for failure in control.failures_of(stored, stored.retry)] == ["0", "1"]


@pytest.mark.parametrize("status", Status.values)
def test_retry_is_refused_by_the_status_or_makes_it_due(status):
    fail(make(status=status))
    if status in ("paused", "finished", "finished with failures"):
        assert control.retry("count-visits", by="ada") == 1
        assert (Run.objects.get().status, Run.objects.get().stop_reason) == ("due", "retried by ada")
    else:
        with pytest.raises(StatusConflict, match="cannot try failures again"):
            control.retry("count-visits")
        assert Run.objects.get().retry is None


def test_a_retry_of_nothing_changes_nothing():
    make(status=Status.FINISHED)
    assert control.retry("count-visits") == 0
    assert (Run.objects.get().status, Run.objects.get().retry) == ("finished", None)


def test_given_up_failures_are_resolved_and_the_run_is_finished():
    run = make(status=Status.FINISHED_WITH_FAILURES)
    fail(run, "1")
    fail(run, "2", sqlstate="40001", kind=Failure.Kind.CALLBACK)
    assert control.forget_failures("count-visits", cause="23505") == 1
    assert Run.objects.get().status == "finished with failures"
    assert control.forget_failures("count-visits") == 1
    assert Run.objects.get().status == "finished"
    assert set(Failure.objects.values_list("resolution", flat=True)) == {"forgotten"}


def test_of_two_changes_at_once_one_is_refused():
    make(using="postgres")
    together, ends = threading.Barrier(2), []

    def change(asked):
        together.wait()
        try:
            asked("count-visits", using="postgres")
            ends.append("done")
        except StatusConflict as error:
            ends.append(f"refused: {error.status}")
        finally:
            connections.close_all()

    threads = [threading.Thread(target=change, args=(control.resume,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ends) == ["done", "refused: due"]


TOLD = []


def note(name, using):
    TOLD.append((name, using))


def test_the_runner_is_told_when_that_is_committed(settings):
    settings.POOLSAVE = {"runner": f"{__name__}.note"}
    TOLD.clear()
    with transaction.atomic():
        control.start("count-visits")
        assert TOLD == []
    assert TOLD == [("count-visits", "default")]
    control.pause("count-visits")
    assert len(TOLD) == 1
    control.resume("count-visits")
    assert len(TOLD) == 2


@pytest.mark.parametrize("value", [{"runner": 7}, {"runner": "no.such.thing"}, {"slice": 0}, {"slice": "long"}])
def test_settings_that_cannot_work_are_refused(settings, value):
    settings.POOLSAVE = value
    assert [message.id for message in check_settings()] == ["poolsave.E001"]  # of `manage.py check`
    with pytest.raises(InvalidOption, match=f"{next(iter(value))}=.*settings.POOLSAVE"):
        control.start("count-visits")
    assert not Run.objects.exists()


def waits_for_a_lock():
    with connections["postgres"].cursor() as cursor:
        cursor.execute("SELECT pg_stat_clear_snapshot()")  # a transaction sees the first one else
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        return cursor.fetchone()[0] > 0


def test_recover_locks_a_run_before_its_lease_as_sessions_do():
    run = make(status=Status.RUNNING, using="postgres", heartbeat_at=timezone.now() - LONG_AGO, holder="other pid=1")

    def recover():
        control.recover(using="postgres")
        connections.close_all()

    with transaction.atomic(using="postgres"):
        Run.objects.using("postgres").select_for_update().get()
        thread = threading.Thread(target=recover)
        thread.start()
        wait_until(waits_for_a_lock)
        assert Lease.objects.using("postgres").select_for_update(nowait=True).get().generation == 3
    thread.join()
    run.refresh_from_db()
    assert (run.status, Lease.objects.using("postgres").get().generation) == ("due", 4)


@needs_mariadb
@pytest.mark.parametrize("change", [control.pause, control.cancel, control.forget, control.resume, control.retry])
def test_name_in_another_case_is_another_run_on_mariadb(change):
    Run.objects.using("mariadb").create(name="articles", status="paused", stop_code="slice")
    with pytest.raises(UnknownRun, match="no run 'Articles'"):
        change("Articles", using="mariadb")
    assert Run.objects.using("mariadb").get().status == "paused"
    assert control.pause("articles", using="mariadb", by="ada").stop_reason == "paused by ada"


@pytest.mark.parametrize("use_tz", [True, False])
def test_since_takes_times_with_and_without_a_zone(alias, settings, use_tz):
    settings.USE_TZ = use_tz
    run = make(using=alias, status=Status.FINISHED_WITH_FAILURES)
    fail(run, "1")
    for since in (datetime(2020, 1, 1), datetime(2020, 1, 1, tzinfo=UTC), timedelta(hours=1)):  # noqa: DTZ001
        assert control.unresolved(run, since=since).count() == 1
    assert control.unresolved(run, since=datetime(2999, 1, 1)).count() == 0  # noqa: DTZ001
