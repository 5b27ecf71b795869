"""A report never lies about the database: held against it by SQL, after workers and the server were killed at random.

Every object writes a row, an audit row by a receiver, and a many-to-many row. Hypothesis draws schedules of kills and
of sessions that the server ends; a process of its own carries them out, while objects are fed until it is through, so
that every kill hits a run. `pytest -m chaos -s` does the same at length and tells the totals.

Each test prints its seed, and each run its schedule. `POOLSAVE_TEST_CHAOS_SEED=<seed> pytest <the test>` draws the same
schedules again. The moments at which blows fall depend on the machine, so repeat it until the failure comes back.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from django.db import connections
from hypothesis import HealthCheck, Phase, given, seed, settings

from poolsave import Status, WorkerDied
from tests.conftest import wait_until
from tests.models import Document, Person, Tag
from tests.support import operations
from tests.support.chaos import End, audit, found_in, killer, lines_of, names_signed, names_until, schedules
from tests.support.killer import SESSIONS

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")

MODES = ["object", "chunk"]


def carry_out(schedule, alias, signed):
    """One run by one schedule; gives what it came to, all of it audited."""
    outcomes, done = outcomes_under(schedule, operations.saves_and_signs, alias, signed)
    counts = audited(outcomes, alias, signed)
    assert len({outcome.index for outcome in outcomes}) == len(outcomes) == counts.total()
    for outcome in outcomes:
        assert outcome.ok or isinstance(outcome.error, WorkerDied) or done["ends"], outcome
    # A kill or an ended session costs at most what was in one COMMIT.
    together = 1 if schedule.mode == "object" else schedule.chunksize
    assert counts["lost"] <= done.total() * together
    if alias == "postgres" and schedule.is_settled:
        assert counts["lost"] == 0
    return done + counts


def outcomes_under(schedule, operation, alias, signed):
    """Run the operation while the schedule is carried out. Gives its outcomes, and how often each blow fell."""
    print(schedule)
    clear(alias)
    signed.unlink(missing_ok=True)
    operation = operation.using(databases=(alias,), **schedule.options).bind(alias=alias, signed=str(signed))
    with killer(schedule, alias, signed) as process:
        names = names_until(lambda: process.poll() is not None, schedule.objects)
        outcomes = list(operation.stream(names))
        assert process.wait(30) == 0
        return outcomes, Counter(json.loads(process.stdout.read()))


def audited(outcomes, alias, signed):
    return audit(
        [End(outcome.item, outcome.status) for outcome in outcomes], found_in(alias), signed=names_signed(signed)
    )


def clear(alias):
    Person.objects.using(alias).all().delete()
    Document.objects.using(alias).all().delete()
    Tag.objects.using(alias).all().delete()
    Tag.objects.using(alias).create(name="member")
    connections.close_all()  # or the killer might end this session


def under(alias, mode, path, *, examples, kills, ends=None, carry_out=carry_out, **wish):
    """Runs by random schedules, each with at least so many kills; gives the totals."""
    number = int(os.environ.get("POOLSAVE_TEST_CHAOS_SEED") or random.randrange(2**32))
    totals = Counter()
    ends = ends if ends is not None else kills // 2 if sessions_can_be_ended(alias) else 0

    # The schedules hold random numbers only, so that a smaller one would tell nothing new.
    @seed(number)
    @settings(
        max_examples=examples, deadline=None, phases=[Phase.generate], database=None, print_blob=True,
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
    )  # fmt: skip
    @given(schedules(mode, kills=kills, ends=ends, **wish))
    def run(schedule):
        totals.update(carry_out(schedule, alias, path / "signed"))

    print(f"POOLSAVE_TEST_CHAOS_SEED={number}")
    run()
    print(f"{alias} {mode}:", *(f"{count} {what}" for what, count in totals.items()))
    assert totals["kills"] >= examples * kills
    return totals


def sessions_can_be_ended(alias):
    return connections[alias].vendor in SESSIONS


@pytest.mark.parametrize("mode", MODES)
def test_workers_and_sessions_that_end_at_random(alias, mode, tmp_path):
    """At least 20 kills each, which makes 80 on two databases."""
    under(alias, mode, tmp_path, examples=4, kills=5)


def test_workers_that_end_with_buffered_rows(tmp_path):
    under("postgres", "batched", tmp_path, examples=4, kills=5)


def test_resolve_lost_leaves_nothing_lost_on_postgresql(tmp_path):
    totals = under("postgres", "object", tmp_path, examples=2, kills=5, resolve_lost=True)
    assert totals["lost"] == 0


@pytest.mark.parametrize("mode", MODES)
def test_sessions_alone_that_the_server_ends_at_random(server, mode, tmp_path):
    """No worker dies of it, and the objects are tried again."""
    totals = under(server, mode, tmp_path, examples=2, kills=0, ends=5)
    assert totals["kills"] == 0
    assert totals["ends"] >= 10


@pytest.mark.chaos
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("mode", MODES)
def test_a_thousand_kills(alias, mode, tmp_path):
    """250 in each of two modes on each database."""
    under(alias, mode, tmp_path, examples=13, kills=20)


@pytest.mark.chaos
@pytest.mark.timeout(1500)
def test_a_thousand_kills_with_buffered_rows(tmp_path):
    under("postgres", "batched", tmp_path, examples=50, kills=20)


def carry_out_with_each_fault(schedule, alias, signed):
    """Objects have callbacks and files, commit past Django, and kill their worker in a callback, beside the blows."""
    called = signed.with_name("signed.called")
    called.unlink(missing_ok=True)
    outcomes, done = outcomes_under(schedule, operations.meets_each_fault, alias, signed)
    counts = audited(outcomes, alias, signed)
    assert sorted(outcome.index for outcome in outcomes) == list(range(len(outcomes)))
    known = {outcome.item: outcome.status for outcome in outcomes}
    calls = Counter(line.split()[1] for line in lines_of(called))
    assert max(calls.values()) == 1
    assert all(known[name] in (Status.SUCCEEDED, Status.LOST) for name in calls)
    files = {row.name: Path(row.file.path).read_text() for row in Document.objects.using(alias)}
    assert all(name == content and known[name] != Status.FAILED for name, content in files.items())
    saved = {name for name, status in known.items() if int(name[1:]) % 8 == 3 and status == Status.SUCCEEDED}
    assert saved
    assert saved <= files.keys()
    past_django = [status for name, status in known.items() if int(name[1:]) % 16 == 4]
    assert past_django
    assert Status.SUCCEEDED not in past_django
    return done + counts


@pytest.mark.parametrize("mode", MODES)
def test_each_fault_beside_random_kills(alias, mode, tmp_path, settings):
    settings.MEDIA_ROOT = tmp_path / "media"
    under(alias, mode, tmp_path, examples=2, kills=3, ends=0, carry_out=carry_out_with_each_fault)


def test_each_fault_beside_kills_with_buffered_rows(tmp_path, settings):
    settings.MEDIA_ROOT = tmp_path / "media"
    under("postgres", "batched", tmp_path, examples=2, kills=3, ends=0, carry_out=carry_out_with_each_fault)


@pytest.mark.chaos
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("mode", MODES)
def test_each_fault_beside_many_kills(alias, mode, tmp_path, settings):
    settings.MEDIA_ROOT = tmp_path / "media"
    under(alias, mode, tmp_path, examples=5, kills=10, carry_out=carry_out_with_each_fault)


def terminated_group(alias, mode, start_method, signed, seconds):
    """A caller in a group of its own, which gets SIGTERM as a whole so many seconds after its first object."""
    orders = {
        "alias": alias, "name": connections[alias].settings_dict["NAME"], "signed": str(signed),
        "options": {"transaction": mode, "start_method": start_method, "chunksize": 5},
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.terminated", json.dumps(orders)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        wait_until(lambda: signed.exists() or process.poll() is not None)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGTERM)
        told, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait(30)
    assert process.returncode == 128 + signal.SIGTERM, errors
    return [End(*pair) for pair in json.loads(told)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_sigterm_to_the_group(server, mode, start_method, tmp_path):
    """The caller, the fork server and what else is in its group are told to end; the report stays true."""
    clear(server)
    generator = random.Random(mode + start_method)
    told_to_end(server, mode, start_method, tmp_path / "signed", generator.uniform(0, 0.5))


@pytest.mark.chaos
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_sigterm_to_many_groups(server, mode, start_method, tmp_path):
    for number in range(10):
        clear(server)
        told_to_end(server, mode, start_method, tmp_path / f"signed{number}", random.uniform(0, 1))


def told_to_end(alias, mode, start_method, signed, seconds):
    ends = terminated_group(alias, mode, start_method, signed, seconds)
    counts = audit(ends, found_in(alias), signed=names_signed(signed))
    print(alias, mode, start_method, *(f"{count} {what}" for what, count in counts.items()))
    assert counts["succeeded"] > 0
