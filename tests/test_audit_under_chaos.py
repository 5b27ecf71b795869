"""A report never lies about the database: held against it by SQL, after workers were killed at random.

Every object writes a row, an audit row by a receiver, and a many-to-many row. A process of its own kills workers at
random moments, by a schedule whose seed is told; on PostgreSQL their server sessions are ended, too.
"""

import random
import subprocess
import sys
import textwrap
from collections import Counter

import pytest

from poolsave import Status
from tests import operations
from tests.conftest import _connect
from tests.models import Badge, Person

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")

KILLER = """
    import os, random, signal, sys, time
    import psutil

    parent, seed, kills, least, most = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *map(float, sys.argv[4:6])
    choice = random.Random(seed)
    done = 0
    while done < kills and psutil.pid_exists(parent):
        time.sleep(choice.uniform(least, most))
        try:
            # Workers lead groups of their own; other children of the parent do not.
            workers = [one.pid for one in psutil.Process(parent).children() if os.getpgid(one.pid) == one.pid]
            if workers:
                os.kill(choice.choice(workers), signal.SIGKILL)
                done += 1
        except (psutil.Error, ProcessLookupError):
            pass
    print(done)
"""


def with_killer(operation, names, *, seed, kills, pause):
    """Run the operation while its workers are killed; gives the outcomes and the number of kills."""
    import os

    arguments = [str(os.getpid()), str(seed), str(kills), *map(str, pause)]
    killer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLER), *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        outcomes = list(operation.stream(names))
    finally:
        killer.terminate()
        told, _errors = killer.communicate(timeout=30)
    return outcomes, int(told or 0)


def audit(outcomes, names, alias):
    """Hold the outcomes against the database; gives their counts."""
    assert sorted(outcome.item for outcome in outcomes) == sorted(names)
    rows = Counter(Person.objects.using(alias).values_list("name", flat=True))
    badges = Counter(Badge.objects.using(alias).values_list("person__name", flat=True))
    tags = Counter(Person.objects.using(alias).filter(tags__name="member").values_list("name", flat=True))
    for outcome in outcomes:
        name = outcome.item
        if outcome.status is Status.SUCCEEDED:
            assert rows[name] == badges[name] == tags[name] == 1, outcome
        elif outcome.status is Status.LOST:
            assert rows[name] == badges[name] == tags[name] <= 1, outcome
        else:
            assert rows[name] == badges[name] == tags[name] == 0, outcome
    assert sum(rows.values()) == len(rows)
    return Counter(outcome.status for outcome in outcomes)


def chaos(alias, mode, seed, *, objects, kills, pause=(0.01, 0.06), **options):
    from tests.models import Tag

    Tag.objects.using(alias).create(name="member")
    names = [f"p{number}" for number in range(objects)]
    operation = operations.save_person.using(
        databases=(alias,), transaction=mode, start_method="fork", workers=3, chunksize=10, **options
    ).bind(alias=alias)
    outcomes, killed = with_killer(operation, names, seed=seed, kills=kills, pause=pause)
    counts = audit(outcomes, names, alias)
    print(f"{alias} {mode} seed={seed} kills={killed} {dict(counts)}")
    return counts, killed


@pytest.mark.parametrize("mode", ["object", "chunk"])
def test_workers_that_are_killed_at_random(alias, mode):
    counts, killed = chaos(alias, mode, random.randrange(10**6), objects=1000, kills=15)
    assert killed >= 5
    assert counts[Status.FAILED] <= killed
    if alias == "postgres" and mode == "chunk":
        assert counts[Status.LOST] == 0


def test_nothing_stays_lost_on_postgresql_if_transactions_are_noted():
    counts, _killed = chaos("postgres", "object", random.randrange(10**6), objects=800, kills=15, resolve_lost=True)
    assert counts[Status.LOST] == 0


@pytest.mark.parametrize("mode", ["object", "chunk"])
def test_sessions_that_the_server_ends_at_random(mode):
    """No worker dies, and what the server says may be tried again is."""
    names = [f"p{number}" for number in range(400)]
    operation = operations.save_person.using(
        databases=("postgres",), transaction=mode, start_method="fork", workers=2, chunksize=5, resolve_lost=True
    ).bind(alias="postgres")
    choice = random.Random(random.randrange(10**6))
    ended = 0
    outcomes = []
    watcher = _connect()
    with watcher.cursor() as cursor:
        for outcome in operation.stream(names):
            outcomes.append(outcome)
            if choice.random() < 0.05:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname LIKE 'test_%' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1"
                )
                ended += 1
    watcher.close()
    counts = audit(outcomes, names, "postgres")
    print(f"sessions ended: {ended} {dict(counts)}")
    assert ended >= 5
    assert counts[Status.LOST] == 0


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["object", "chunk"])
def test_a_thousand_kills(alias, mode):
    killed = lost = 0
    while killed < 250:  # on each of two databases, in each of two modes
        Person.objects.using(alias).all().delete()
        from tests.models import Tag

        Tag.objects.using(alias).all().delete()
        counts, some = chaos(alias, mode, random.randrange(10**6), objects=2000, kills=60)
        killed += some
        lost += counts[Status.LOST]
    print(f"{alias} {mode}: {killed} kills, {lost} lost")
