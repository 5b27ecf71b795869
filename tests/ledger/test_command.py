"""`manage.py poolsave` prints what the ledger has, for people and for programs, and asks for what it is told.

What is right are the rows that the tests have written, and what JSON and a split at tabs read back.
"""

import io
import json
import os
import subprocess
import sys
from datetime import date, timedelta

import pytest
from django import forms
from django.core.management import CommandError, call_command
from django.utils import timezone

from poolsave.ledger.models import Failure, Lease, Run
from poolsave.ledger.registry import Backfill, backfills
from tests.support.holder import working_process

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")
Status = Run.Status


def make(name="count-visits", status=Status.PAUSED, using="default", **values):
    run = Run.objects.using(using).create(name=name, status=status, **values)
    Lease.objects.using(using).create(run=run)
    return run


def fail(run, key, cause="E [23505] at a.py:1 in f", sqlstate="23505", **values):
    facts = {"error_class": "shop.E", "sqlstate": sqlstate, "message": f"=evil({key})", **values}
    return Failure.objects.using(run._state.db).create(run=run, key=key, cause=cause, **facts)


def command(*words, status=0):
    """Call it; gives what it prints, and looks at its exit status."""
    out = io.StringIO()
    if status == 0:
        call_command("poolsave", *words, stdout=out)
        return out.getvalue()
    with pytest.raises(CommandError) as caught:
        call_command("poolsave", *words, stdout=out)
    assert caught.value.returncode == status
    return str(caught.value)


def test_list_has_all_runs_and_what_was_never_started(alias):
    now = timezone.now()
    make(
        using=alias, status=Status.RUNNING, total=2000, done=497, failed=3, rate=50.0, started_at=now, heartbeat_at=now
    )
    make("b", using=alias, stop_code="failures", stop_reason="too\tmany\nof them")
    printed = command("list", "--database", alias)
    assert "count-visits" in printed
    assert "500 of 2,000" in printed
    found = json.loads(command("list", "--json", "--database", alias))
    assert [one["name"] for one in found] == ["b", "count-visits", *sorted(set(backfills()) - {"count-visits"})]
    assert found[1]["seconds_left"] == (2000 - 500) / 50
    assert found[2]["status"] == "not started"
    lines = [line.split("\t") for line in command("list", "--plain", "--database", alias).splitlines()]
    assert {len(line) for line in lines} == {len(found[0])}
    assert lines[0][:3] == ["b", "paused", "failures"]
    assert lines[0][-1] == "too many of them"


def test_status_groups_failures_by_their_cause():
    run = make(status=Status.PAUSED, stop_code="operator", done=7, failed=3, total=10, started_by="ada")
    for key in "123":
        fail(run, key, **({"cause": "F at b.py:2 in g"} if key == "3" else {}))
    printed = command("status", "count-visits")
    assert "2 x E [23505] at a.py:1 in f" in printed
    assert "1 x F at b.py:2 in g, such as 3" in printed
    assert "3 failures are unresolved" in printed
    assert "ada" in printed
    found = json.loads(command("status", "count-visits", "--json"))
    assert [(one["failures"], one["sqlstate"]) for one in found["causes"]] == [(2, "23505"), (1, "23505")]
    lines = command("status", "count-visits", "--plain").splitlines()
    assert "done\t7" in lines
    assert lines[-1] == "cause\t1\tF at b.py:2 in g"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"status": Status.FINISHED}, 0),
        ({"status": Status.PAUSED, "stop_code": "operator"}, 0),
        ({"status": Status.PAUSED, "stop_code": "slice"}, 0),
        ({"status": Status.PAUSED, "stop_code": "failures"}, 3),
        ({"status": Status.PAUSED, "stop_code": "error", "stop_reason": "ValueError: x"}, 3),
    ],
)
def test_status_ends_with_3_if_a_run_needs_someone(values, expected):
    make(**values)
    said = command("status", "count-visits", status=expected)
    assert values.get("stop_reason", "") in said


def test_status_ends_with_3_if_the_process_of_a_run_was_killed():
    with working_process() as (process, holder):
        make(status=Status.RUNNING, holder=holder, heartbeat_at=timezone.now(), rate=60.0, total=100, done=10)
        assert "60 a second" in command("status", "count-visits")
        process.kill()
        process.wait()
        told = command("status", "count-visits", status=3)
    assert "60 a second" not in told
    assert f"process {process.pid}, has ended in the middle of it" in told


def test_failures_that_are_mended_are_told_of_as_such():
    run = make(status=Status.FINISHED, done=7, failed=3, total=10)
    assert "10 of 10 · 3 failed, all resolved" in command("status", run.name)


def test_status_ends_with_3_for_unresolved_failures():
    run = make(status=Status.FINISHED_WITH_FAILURES)
    failure = fail(run, "1")
    assert "1 failure is unresolved" in command("status", "count-visits", status=3)
    Failure.objects.filter(pk=failure.pk).update(resolved_at=timezone.now())
    command("status", "count-visits")


@pytest.mark.parametrize(
    ("words", "before", "after"),
    [
        (["pause", "count-visits"], "running", "pausing"),
        (["resume", "count-visits"], "paused", "due"),
        (["cancel", "count-visits"], "due", "cancelled"),
        (["retry", "count-visits"], "finished with failures", "due"),
        (["recover"], "running", "due"),
    ],
)
def test_what_is_asked_stands_in_the_ledger(alias, words, before, after):
    old = timezone.now() - timedelta(hours=1)
    fail(make(using=alias, status=before, started_at=old, heartbeat_at=old), "1")
    command(*words, "--database", alias)
    assert Run.objects.using(alias).get().status == after


def test_start_hands_parameters_to_the_form():
    command("start", "count-group", "--set", "group=2", "--set", "names=a", "--set", "names=b")
    assert Run.objects.get().parameters == {"group": "2", "by": "1", "names": ["a", "b"]}
    assert Run.objects.get().started_by
    assert "group: This field is required" in command("start", "count-group", status=1)
    assert "no backfill 'x'" in command("start", "x", status=1)
    assert "is due, so that it cannot be started" in command("start", "count-group", "--set", "group=1", status=1)


def test_retry_chooses_by_cause_age_and_number():
    run = make(status=Status.FINISHED_WITH_FAILURES)
    for key in "123":
        fail(run, key)
    Failure.objects.filter(key="1").update(created_at=timezone.now() - timedelta(days=8))
    Failure.objects.exclude(key="1").update(created_at=timezone.now() - timedelta(hours=1))
    fail(run, "4", sqlstate="40001")
    said = command("retry", "count-visits", "--cause", "23505", "--since", "7d", "--limit", "100", "--plain")
    assert said == "2\n"
    assert Run.objects.get().retry.keys() == {"cause", "since", "upto"}
    assert json.loads(command("retry", "count-visits", "--cause", "23505", "--since", "1s", "--json")) == {
        "failures": 0
    }


@pytest.mark.parametrize("when", ["7", "7x", "yesterday", "2026-02-30", "-1d", ""])
def test_an_age_that_is_none_is_refused(when):
    assert "--since" in command("retry", "count-visits", f"--since={when}", status=1)


@pytest.mark.parametrize(("when", "expected"), [("2026-11-01", 2), ("2026-11-01 10:00", 2), ("90m", 1), ("2w", 1)])
def test_since_takes_an_age_or_a_time(when, expected):
    run = make(status=Status.FINISHED_WITH_FAILURES)
    fail(run, "1")
    fail(run, "2")
    Failure.objects.filter(key="2").update(created_at=timezone.now() - timedelta(days=20))
    if expected == 2:
        Failure.objects.filter(key="2").update(created_at=timezone.make_aware(timezone.datetime(2026, 11, 2)))
    assert command("retry", "count-visits", "--since", when, "--plain") == f"{expected}\n"


def test_forget_asks_or_wants_yes(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n"))  # no terminal
    fail(make(), "1")
    assert "give --yes" in command("forget", "count-visits", status=1)
    assert "give --failures" in command("forget", "count-visits", "--cause", "x", "--yes", status=1)
    command("forget", "count-visits", "--failures", "--cause", "23505", "--yes")
    assert Failure.objects.get().resolution == "forgotten"
    command("forget", "count-visits", "--yes")
    assert not Run.objects.exists()


def test_failures_are_csv_or_json_without_formulas():
    run = make(status=Status.FINISHED_WITH_FAILURES)
    fail(run, "1", traceback="Traceback ...")
    fail(run, "2", sqlstate="40001")
    lines = command("failures", "count-visits", "--cause", "23505").splitlines()
    assert lines[0].startswith("key,kind,error_class,sqlstate")
    assert len(lines) == 2
    assert "'=evil(1)" in lines[1]
    found = [json.loads(line) for line in command("failures", "count-visits", "--json").splitlines()]
    assert [(one["key"], one["message"], one["traceback"]) for one in found] == [
        ("1", "=evil(1)", "Traceback ..."),
        ("2", "=evil(2)", ""),
    ]


def test_what_is_unknown_is_said_in_one_line():
    make("b")
    assert "there is no run 'a' in the database 'default': give one of 'b'" in command("status", "a", status=1)
    assert "--database 'nowhere' is none of default" in command("list", "--database", "nowhere", status=1)


def test_help_has_the_exit_statuses_and_all_actions(capsys):
    with pytest.raises(SystemExit):
        call_command("poolsave", "--help")
    printed = capsys.readouterr().out
    assert "\n  3    status, work: a run needs someone" in printed
    for action in ("list", "status", "start", "resume", "pause", "cancel", "recover", "retry", "forget", "work"):
        assert f"\n    {action} " in printed


def test_without_the_tables_it_says_how_to_make_them(tmp_path):
    settings = f"""
SECRET_KEY = "x"
INSTALLED_APPS = ["django.contrib.contenttypes", "poolsave.ledger"]
DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": "{tmp_path}/db.sqlite3"}}}}
"""
    (tmp_path / "bare_settings.py").write_text(settings)
    words = [sys.executable, "-m", "django", "poolsave", "list", "--settings", "bare_settings"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "run `manage.py migrate poolsave_ledger --database=default`" in done.stderr
    assert "Traceback" not in done.stderr


def test_watch_prints_each_change_until_the_run_stops(monkeypatch):
    run = make(status=Status.RUNNING, done=1, total=3)
    steps = iter([{}, {"done": 2}, {"done": 3, "status": Status.FINISHED}])
    monkeypatch.setattr("time.sleep", lambda _seconds: Run.objects.filter(pk=run.pk).update(**next(steps), rate=None))
    found = [json.loads(line) for line in command("status", "count-visits", "--watch", "--json").splitlines()]
    assert [(one["done"], one["status"]) for one in found] == [(1, "running"), (2, "running"), (3, "finished")]


@pytest.mark.parametrize("words", [["retry"], ["failures"], ["forget", "--failures", "--yes"]])
def test_cause_that_no_failure_has_is_refused(words):
    run = make(status=Status.FINISHED_WITH_FAILURES)
    action, *more = words
    assert "'TYPO': the run has no failures" in command(action, "count-visits", *more, "--cause", "TYPO", status=1)
    fail(run, "1")
    fail(run, "2", "F at b.py:2 in g", resolved_at=timezone.now(), sqlstate="40001")
    said = command(action, "count-visits", *more, "--cause", "TYPO", status=1)
    assert "give one of 'E [23505] at a.py:1 in f', 'F at b.py:2 in g'" in said
    command(action, "count-visits", *more, "--cause", "40001")  # those that have it are resolved


def test_status_tells_of_a_backfill_that_was_not_started():
    assert "not started; `manage.py poolsave start count-visits`" in command("status", "count-visits", "--watch")
    assert json.loads(command("status", "count-visits", "--json"))["status"] == "not started"
    assert "status\tnot started" in command("status", "count-visits", "--plain").splitlines()


def test_start_takes_the_initial_values_of_the_form(alias):
    said = command("start", "count-group", "--set", "group=2", "--database", alias)
    assert "by='1' by default" in said
    assert Run.objects.using(alias).get().parameters == {"group": "2", "by": "1"}


def test_initial_values_are_sent_as_a_browser_sends_them():
    class Form(forms.Form):
        day = forms.DateField(initial=lambda: date(2026, 11, 28))
        twice = forms.BooleanField(initial=True, required=False)
        never = forms.BooleanField(initial=False, required=False)
        one = forms.ChoiceField(choices=[("a", "A"), ("b", "B")], initial="b")
        several = forms.MultipleChoiceField(choices=[("a", "A"), ("b", "B")], initial=["a", "b"])
        at = forms.SplitDateTimeField(initial=timezone.now, required=False)
        given = forms.IntegerField(initial=5)

    backfill = Backfill(name="x", operation=None, queryset=None, form=Form)
    defaults = backfill.defaults({"given": "7"})
    assert defaults == {"day": "2026-11-28", "twice": "on", "one": "b", "several": ["a", "b"]}
    cleaned = backfill.cleaned({**defaults, "given": "7"})
    assert (cleaned["day"], cleaned["twice"], cleaned["never"], cleaned["given"]) == (
        date(2026, 11, 28),
        True,
        False,
        7,
    )


def test_reader_that_has_gone_ends_the_command_quietly(tmp_path):
    settings = f"""
SECRET_KEY = "x"
INSTALLED_APPS = ["django.contrib.contenttypes", "poolsave.ledger"]
DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": "{tmp_path}/db.sqlite3"}}}}
"""
    (tmp_path / "piped_settings.py").write_text(settings)
    (tmp_path / "go.py").write_text(
        """
import sys
import django
django.setup()
from django.core.management import call_command, execute_from_command_line
from poolsave.ledger.models import Failure, Lease, Run
call_command("migrate", verbosity=0)
run = Run.objects.create(name="piped", status="finished with failures")
Failure.objects.bulk_create(Failure(run=run, key=str(key), cause="E", error_class="E") for key in range(5000))
sys.stdout.close()
sys.stdout = open(1, "w", closefd=False)
execute_from_command_line(["manage.py", "poolsave", "failures", "piped"])
"""
    )
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "piped_settings"}
    words = [sys.executable, "go.py"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=-1, stderr=-1, text=True, env=environment) as process:
        assert process.stdout.readline().startswith("key,")
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == ("", 141)


@pytest.mark.parametrize("action", ["status", "resume", "pause", "cancel", "retry", "forget", "failures", "work"])
def test_each_action_ends_with_1_for_an_unknown_run(action):
    more = ["--yes"] if action == "forget" else []
    assert "there is no run 'nobody'" in command(action, "nobody", *more, status=1)


def test_wrong_arguments_end_with_2():
    words = [sys.executable, "-m", "django", "poolsave", "retry", "a", "--limit", "0", "--settings", "tests.settings"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, "'0' is not at least 1" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("action", "status"),
    [("start", "paused"), ("resume", "finished"), ("pause", "finished"), ("cancel", "finished"), ("retry", "due"),
     ("forget", "running"), ("work", "finished")],
)  # fmt: skip
def test_each_action_ends_with_1_if_the_status_forbids_it(action, status):
    fail(make(status=status, heartbeat_at=timezone.now()), "1")
    more = ["--yes"] if action == "forget" else []
    assert f"is {status}" in command(action, "count-visits", *more, status=1)
    assert Run.objects.get().status == status


@pytest.mark.parametrize("words", [["list"], ["recover"], ["work", "--once"]])
def test_actions_about_all_runs_end_with_0_without_any(words):
    command(*words)
