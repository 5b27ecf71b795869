"""The admin shows runs at a few queries each page, changes them by POST and with permission only, and keeps a log.

Queries are counted without those for the session, the user and the user's permissions, which each admin page has.
"""

import contextlib
import threading
from urllib.parse import quote

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from poolsave.errors import StatusConflict
from poolsave.ledger import control
from poolsave.ledger.models import Chunk, Failure, Lease, Run
from tests.models import Thing
from tests.support import admin_site
from tests.support.holder import working_process

pytestmark = pytest.mark.django_db(transaction=True)
RUNS = "/admin/poolsave_ledger/run/"
FAILURES = "/admin/poolsave_ledger/failure/"
HOSTILE = "<script>alert('&\"')</script>"
CAUSE = "ValueError at shop.py:1 in f"


@pytest.fixture(autouse=True)
def _admin(transactional_db):
    with admin_site.installed():
        yield


@pytest.fixture
def client():
    return logged_in(User.objects.create_superuser("ada"))


def logged_in(user):
    client = Client()
    client.force_login(user)
    return client


def staff(*permissions):
    """A client of a user who has these permissions, and no others."""
    user = User.objects.create_user(f"staff{User.objects.count()}", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return logged_in(user)


def make(name="count-visits", status=Run.Status.RUNNING, **values):
    run = Run.objects.create(name=name, status=status, **values)
    Lease.objects.create(run=run)
    return run


def fail(run, *, number=3, cause=CAUSE, **values):
    values = {"error_class": "ValueError", "frame": "shop.py:1 in f", "message": "no", **values}
    Failure.objects.bulk_create(Failure(run=run, key=str(key), cause=cause, **values) for key in range(number))


def log():
    from django.contrib.admin.models import LogEntry

    return [(entry.user.username, entry.get_change_message()) for entry in LogEntry.objects.order_by("pk")]


def messages_of(response):
    return [str(message) for message in response.context["messages"]]


def own_queries(client, url):
    """The queries of a page, without those that ask who the user is and what this user may do."""
    with CaptureQueriesContext(connection) as captured:
        assert client.get(url).status_code == 200
    return [query["sql"] for query in captured.captured_queries if ' FROM "auth_' not in query["sql"]]


# What it costs


@pytest.mark.parametrize("chunks", [1_000, pytest.param(1_000_000, marks=pytest.mark.large)])
def test_a_page_costs_five_queries_and_none_of_chunks(chunks, client):
    run = make(total=10_000_000, done=1_000_000, rate=100.0)
    fail(run)
    with connection.cursor() as cursor:
        cursor.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %s) "
            "INSERT INTO poolsave_ledger_chunk (run_id, sequence, low, high, done, failed, skipped) "
            "SELECT %s, i, i, i + 1, 1, 0, 0 FROM n",
            [chunks, run.pk],
        )
    assert Chunk.objects.count() == chunks
    for url in pages(run):
        queries = own_queries(client, url)
        assert len(queries) <= 5, url
        assert not [query for query in queries if "poolsave_ledger_chunk" in query], url


def pages(run):
    """All that GET gives."""
    own = ["change/", "history/", "delete/", "failures.csv"]
    return [
        RUNS,
        f"{RUNS}start/",
        f"{RUNS}start/fail-in-three-ways/",
        f"{RUNS}start/count-group/",
        *(f"{RUNS}{run.pk}/{page}" for page in own),
        FAILURES,
        f"{FAILURES}?run__id__exact={run.pk}&cause__exact={quote(CAUSE)}&resolved_at__isempty=1",
        f"{FAILURES}{Failure.objects.first().pk}/change/",
    ]


def test_the_list_costs_the_same_for_many_runs(client):
    make("first")
    before = len(own_queries(client, RUNS))
    for number in range(40):
        make(f"run {number}", total=10, done=number % 10)
    assert len(own_queries(client, RUNS)) == before


# Who may do what

ACTIONS = {
    "start": ("start_run", "start/count-group/", {"group": "1", "start": "Start"}),
    "count": ("start_run", "start/count-group/", {"group": "1"}),
    "pause": ("control_run", "{run}/pause/", {}),
    "resume": ("control_run", "{run}/resume/", {}),
    "cancel": ("control_run", "{run}/cancel/", {}),
    "retry": ("retry_failures", "{run}/retry/", {"cause": CAUSE}),
    "forget": ("delete_run", "{run}/delete/", {}),
}
"""By name: the permission it needs, where it is asked for, and what is posted."""
PERMISSIONS = ["view_run", "view_failure", "start_run", "control_run", "retry_failures", "delete_run"]
STATUSES = {"resume": "paused", "retry": "finished with failures", "forget": "finished"}


def posted(client, name, run):
    _permission, url, data = ACTIONS[name]
    return client.post(RUNS + url.format(run=run.pk), data)


def everything():
    return [list(model.objects.order_by("pk").values()) for model in (Run, Lease, Chunk, Failure)]


@pytest.mark.parametrize("name", ACTIONS)
def test_an_action_needs_its_permission(name):
    run = make(status=STATUSES.get(name, "running"))
    fail(run)
    before = everything()
    for missing in ({ACTIONS[name][0]}, {"view_run"}):
        response = posted(staff(*set(PERMISSIONS) - missing), name, run)
        assert response.status_code == 403
    assert everything() == before
    assert log() == []
    assert posted(staff("view_run", ACTIONS[name][0]), name, run).status_code in (200, 302)


@pytest.mark.parametrize("name", ACTIONS)
def test_an_action_is_done_once_and_logged(name, client):
    run = make(status=STATUSES.get(name, "running"))
    fail(run)
    before = everything()
    response = posted(client, name, run)
    assert response.status_code == 200 if name == "count" else 302
    assert (everything() == before) == (name == "count")
    assert [user for user, _said in log()] == ([] if name == "count" else ["ada"])


def test_what_cannot_be_logged_is_not_done(monkeypatch, client):
    from poolsave.ledger.admin import RunAdmin

    run = make()
    monkeypatch.setattr(RunAdmin, "log_change", lambda *args: 1 / 0)
    client.raise_request_exception = False
    assert posted(client, "pause", run).status_code == 500
    assert Run.objects.get().status == "running"


def test_without_a_permission_its_button_is_not_shown():
    run = make(status="paused")
    fail(run)
    page = staff("view_run").get(f"{RUNS}{run.pk}/change/").content.decode()
    for action in ("resume/", "retry/", "failures.csv", "delete/"):
        assert f"{run.pk}/{action}" not in page
    assert "start/" not in staff("view_run").get(RUNS).content.decode()


@pytest.mark.parametrize("page", ["change/", "history/", "delete/", "failures.csv"])
def test_a_page_needs_the_permission_to_view(page):
    run = make()
    everything_else = staff(*set(PERMISSIONS) - {"view_run"})
    assert everything_else.get(f"{RUNS}{run.pk}/{page}").status_code == 403


def test_the_file_needs_the_permission_to_view_failures():
    run = make()
    assert staff("view_run").get(f"{RUNS}{run.pk}/failures.csv").status_code == 403
    assert staff("view_run").get(FAILURES).status_code == 403


def test_a_stranger_is_sent_to_the_login():
    run = make()
    for name in ACTIONS:
        assert posted(Client(), name, run)["Location"].startswith("/admin/login/")


def test_a_post_without_the_token_is_refused(client):
    run = make()
    client.handler.enforce_csrf_checks = True
    assert posted(client, "pause", run).status_code == 403
    assert Run.objects.get().status == "running"


@pytest.mark.parametrize("method", ["get", "head"])
def test_reading_changes_nothing(method, client):
    run = make(status="paused")
    fail(run)
    before = everything()
    for url in pages(run):
        assert getattr(client, method)(url).status_code == 200
    for _permission, url, data in ACTIONS.values():
        response = getattr(client, method)(RUNS + url.format(run=run.pk), data)
        assert response.status_code in (200, 405)
    assert everything() == before
    assert log() == []


def test_the_page_of_a_run_takes_no_post(client):
    assert client.post(f"{RUNS}{make().pk}/change/", {"status": "finished"}).status_code == 405


# What is not there


@pytest.mark.parametrize("url", ["change/", "history/", "delete/", "failures.csv", "pause/", "retry/"])
@pytest.mark.parametrize("pk", ["12345", "x", "9" * 30])
def test_an_unknown_run_is_not_found(url, pk, client):
    ask = client.post if url in ("pause/", "retry/") else client.get
    assert ask(f"{RUNS}{pk}/{url}", follow=True).status_code == 404


def test_an_unknown_backfill_is_not_found(client):
    assert client.get(f"{RUNS}start/nobody/").status_code == 404


# What is shown


def test_what_others_wrote_is_escaped(client):
    run = make(
        HOSTILE, "paused", stop_reason=HOSTILE, started_by=HOSTILE, holder=HOSTILE, parameters={HOSTILE: HOSTILE},
        total=5, retry={"cause": HOSTILE},
    )  # fmt: skip
    shown = {"error_class": HOSTILE, "constraint": HOSTILE, "frame": HOSTILE, "message": HOSTILE, "traceback": HOSTILE}
    fail(run, number=1, cause=HOSTILE, sqlstate="<b>", **shown)
    Failure.objects.update(key=HOSTILE)
    for url in pages(run):
        if not url.endswith(".csv"):
            page = client.get(url).content.decode()
            assert "<script>alert" not in page
            assert "<b>" not in page.replace("<b>&lt;", "")
    assert "&lt;script&gt;alert(" in client.get(f"{RUNS}{run.pk}/change/").content.decode()


def test_the_page_shows_how_far_a_run_is(client):
    now = timezone.now()
    run = make(
        total=8_000, done=1_990, failed=10, rate=50.0, heartbeat_at=now, throttle="replica lag", started_by="eve"
    )
    for url in (RUNS, f"{RUNS}{run.pk}/change/"):
        page = client.get(url).content.decode()
        assert '<progress max="8000" value="2000">' in page
        for text in ("2,000 of 8,000", "10 failed", "50 a second", "2\xa0minutes left", "replica lag", "eve"):
            assert text in page


def test_a_run_whose_process_is_silent_says_so_and_can_go_on(client):
    run = make(heartbeat_at=timezone.now() - timezone.timedelta(minutes=8))
    page = client.get(f"{RUNS}{run.pk}/change/").content.decode()
    assert "no sign of life for 8\xa0minutes" in page
    assert f"{run.pk}/resume/" in page
    posted(client, "resume", run)
    assert Run.objects.get().status == "due"


BUTTONS = {
    "pause": control.pause,
    "resume": control.resume,
    "cancel": control.cancel,
    "retry": control.retry,
    "delete": control.forget,  # the last one, after which there is no run
}


@pytest.mark.parametrize("status", Run.Status.values)
def test_buttons_are_those_that_are_allowed(status, client):
    now = timezone.now()
    run = make(status=status, heartbeat_at=now, started_at=now)
    fail(run)
    page = client.get(f"{RUNS}{run.pk}/change/").content.decode()
    shown = {name for name in BUTTONS if f"{run.pk}/{name}/" in page}
    allowed = set()
    for name, ask in BUTTONS.items():
        Run.objects.filter(pk=run.pk).update(status=status)
        with contextlib.suppress(StatusConflict):
            ask(run.name)
            allowed.add(name)
    assert shown == allowed


def test_a_run_can_be_resumed_as_soon_as_its_process_was_killed(client):
    with working_process() as (process, holder):
        run = make(status="running", heartbeat_at=timezone.now(), holder=holder)
        url = f"{RUNS}{run.pk}/change/"
        assert "/resume/" not in client.get(url).content.decode()
        process.kill()
        process.wait()
        assert "/resume/" in client.get(url).content.decode()
        client.post(f"{RUNS}{run.pk}/resume/")
    run.refresh_from_db()
    assert run.status == "due"


@pytest.mark.parametrize(
    ("status", "renewed"), [("running", True), ("due", True), ("paused", False), ("finished", False)]
)
def test_pages_are_loaded_again_while_something_goes_on(status, renewed, client):
    run = make(status=status)
    for url in (RUNS, f"{RUNS}{run.pk}/change/"):
        assert ('http-equiv="refresh"' in client.get(url).content.decode()) == renewed


# Causes


def test_failures_are_grouped_and_one_cause_is_tried_again(client):
    run = make(status="finished with failures")
    fail(run, number=5)
    fail(run, number=2, cause="IntegrityError [23505] users_email_key", sqlstate="23505", constraint="users_email_key")
    page = client.get(f"{RUNS}{run.pk}/change/").content.decode()
    for text in ("5 failures", "2 failures", "users_email_key", "Retry all 7"):
        assert text in page
    response = client.post(f"{RUNS}{run.pk}/retry/", {"cause": CAUSE}, follow=True)
    assert messages_of(response) == [f"Asked to try 5 failures again: {CAUSE}."]
    run.refresh_from_db()
    assert (run.status, run.retry["cause"]) == ("due", CAUSE)


def test_a_retry_of_nothing_says_so_and_is_not_logged(client):
    run = make(status="finished with failures")
    response = client.post(f"{RUNS}{run.pk}/retry/", {}, follow=True)
    assert messages_of(response) == ["No unresolved failure can be tried again."]
    (said,) = messages_of(client.post(f"{RUNS}{run.pk}/retry/", {"cause": "another"}, follow=True))
    assert "has the cause 'another'" in said
    assert log() == []


def test_the_file_has_each_failure_of_its_cause(client):
    run = make()
    fail(run, number=2, message="=1+1")
    fail(run, number=2, cause="other")
    fail(make("another"), number=1)
    response = client.get(f"{RUNS}{run.pk}/failures.csv", {"cause": CAUSE})
    assert response["Content-Type"] == "text/csv; charset=utf-8"
    heading, *lines = b"".join(response.streaming_content).decode().splitlines()
    assert heading == "key,kind,error_class,sqlstate,constraint,frame,message,attempts,created_at"
    assert [line.rsplit(",", 1)[0] for line in lines] == [
        f"{key},error,ValueError,,,shop.py:1 in f,'=1+1,1" for key in (0, 1)
    ]
    whole = b"".join(client.get(f"{RUNS}{run.pk}/failures.csv").streaming_content).decode()
    assert len(whole.splitlines()) == 5


# Start


def test_rows_are_counted_before_a_run_starts(client):
    Thing.objects.bulk_create(Thing(group=number % 2) for number in range(5))
    url = f"{RUNS}start/count-group/"
    assert 'name="start"' not in client.get(url).content.decode()
    counted = client.post(url, {"group": "0"}).content.decode()
    assert "3 rows" in counted
    assert 'name="start"' in counted
    assert Run.objects.count() == 0
    response = client.post(url, {"group": "0", "names": ["a", "b"], "start": "Start"})
    run = Run.objects.get()
    assert response["Location"] == f"{RUNS}{run.pk}/change/"
    assert (run.status, run.started_by, run.parameters) == ("due", "ada", {"group": "0", "names": ["a", "b"]})


def test_a_backfill_without_a_form_shows_its_rows_at_once(client):
    Thing.objects.bulk_create(Thing() for _ in range(1))
    page = client.get(f"{RUNS}start/count-visits/").content.decode()
    assert "1 row<" in page
    assert 'name="start"' in page


def test_a_form_that_is_not_valid_starts_nothing(client):
    page = client.post(f"{RUNS}start/count-group/", {"group": "-1", "start": "Start"}).content.decode()
    assert "greater than or equal to 0" in page
    assert Run.objects.count() == 0


def test_a_start_without_its_runner_says_why_and_starts_nothing(client, settings):
    settings.POOLSAVE = {"runner": "no.such.thing"}
    response = client.post(f"{RUNS}start/count-visits/", {"start": "Start"}, follow=True)
    assert response.redirect_chain == [(f"{RUNS}start/count-visits/", 302)]
    (message,) = messages_of(response)
    assert "runner='no.such.thing'" in message
    assert not Run.objects.exists()


def test_a_second_start_leads_to_the_run_that_is_there(client):
    run = make(status="finished")
    response = client.post(f"{RUNS}start/count-visits/", {"start": "Start"}, follow=True)
    assert response.redirect_chain == [(f"{RUNS}{run.pk}/change/", 302)]
    (message,) = messages_of(response)
    assert "is finished, so that it cannot be started" in message
    assert log() == []


# At once


def test_of_two_who_pause_at_once_one_is_told_no(monkeypatch):
    run = make()
    clients = [logged_in(User.objects.create_superuser(name)) for name in ("ada", "eve")]
    both_are_there, pause = threading.Barrier(2, timeout=30), control.pause

    def pause_when_both_are_there(*args, **options):
        both_are_there.wait()
        return pause(*args, **options)

    monkeypatch.setattr(control, "pause", pause_when_both_are_there)

    def press(client):
        client.post(f"{RUNS}{run.pk}/pause/")
        connection.close()

    threads = [threading.Thread(target=press, args=[client]) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    # Asked for one after the other, since a test client takes also what others render meanwhile.
    said = [text for client in clients for text in messages_of(client.get(f"{RUNS}{run.pk}/change/"))]
    refused, done = sorted(said, key=lambda text: text == "Asked to pause.")
    assert "is pausing, so that it cannot be paused" in refused
    assert done == "Asked to pause."
    assert Run.objects.get().status == "pausing"
    assert len(log()) == 1
