"""A database that cannot be had is refused before any worker starts; one that goes in the middle ends the run at once.

What is right is what the server has in its table when it is there again.
"""

import threading
import time

import pytest
from django.apps import apps
from django.db import connections
from django.db.migrations.state import ProjectState

from poolsave import DatabaseUnreachable, Status, concurrent_saves, pooled_operation
from poolsave._db.commit_status import TransactionNote, commit_status
from poolsave._runs import querysets
from poolsave.migrations import RunPooled
from tests.conftest import needs_mariadb
from tests.models import Tag
from tests.support.pools import EXECUTORS
from tests.support.postgres import settings_from_url

SIZE = 5_000
SECONDS = 5.0
"""The most between the end of the server and that of the run."""


@pooled_operation(workers=2, progress=False, databases=("gone",), chunksize=10)
def inserts(number):
    time.sleep(0.001)
    with connections["gone"].cursor() as cursor:
        cursor.execute("INSERT INTO numbers VALUES (%s)", [number])
    return number


@pooled_operation(workers=2, progress=False, databases=("gone",), transaction=None)
def passes(number):
    return number


class Server:
    """A private PostgreSQL with a database of its own under the alias "gone", which has a table for numbers."""

    def __init__(self, private_server):
        self._server = private_server
        with private_server.connected() as cursor:
            cursor.execute("DROP DATABASE IF EXISTS gone WITH (FORCE)")
            cursor.execute("CREATE DATABASE gone")
        self.settings = {**settings_from_url(private_server.url), "NAME": "gone"}

    def lock_out(self, *, crash=False):
        """Take all connections away, and accept no more."""
        if crash:
            self._server.crash()
            return
        with self._server.connected() as cursor:
            cursor.execute("ALTER DATABASE gone ALLOW_CONNECTIONS false")
            cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'gone'")

    def let_in(self):
        self._server.start()
        with self._server.connected() as cursor:
            cursor.execute("ALTER DATABASE gone ALLOW_CONNECTIONS true")

    def numbers(self):
        self.let_in()
        connections["gone"].close()
        with connections["gone"].cursor() as cursor:
            cursor.execute("SELECT number FROM numbers ORDER BY number")
            return [number for (number,) in cursor.fetchall()]


@pytest.fixture
def server(private_server, django_db_blocker, monkeypatch):
    one = Server(private_server)
    monkeypatch.setitem(connections.settings, "gone", {**connections.settings["postgres"], **one.settings})
    with django_db_blocker.unblock():  # no test case of Django's, which would forbid this alias
        with connections["gone"].cursor() as cursor:
            cursor.execute("CREATE TABLE numbers (number int)")
        yield one
        connections["gone"].close()
        one.let_in()
    del connections["gone"]


class LockOut:
    """Takes the database away when so many objects have ended."""

    def __init__(self, server, *, after=60, **how):
        self._server = server
        self._left = after
        self._how = how
        self.at = None

    def __call__(self, *_progress):
        self._left -= 1
        if self._left == 0:
            self._server.lock_out(**self._how)
            self.at = time.monotonic()

    def seconds(self):
        return time.monotonic() - self.at


def check_report(report, server, *, at_work, outcomes=None):
    """It has all objects, says the truth of each, and lets most of them be skipped. `at_work`: one per worker in its
    COMMIT, and one that waits for a connection."""
    found = server.numbers()
    saved = {outcome.value for outcome in outcomes or report if outcome.ok}
    lost = {outcome.item for outcome in outcomes or report if outcome.status == "lost"}
    assert saved <= {*found} <= saved | lost
    assert len(found) == len({*found})
    assert report.total == report.succeeded + report.failed + report.lost + report.skipped
    assert report.skipped > 0
    assert report.failed + report.lost <= at_work
    assert "no connection" in report.stopped


WAYS = [
    ("fork", "object", True), ("fork", "chunk", True), ("fork", None, False), ("thread", "object", False),
    ("thread", "chunk", False), ("serial", "object", False), ("serial", None, False), ("dask", "object", False),
]  # fmt: skip


@pytest.mark.parametrize(("executor", "transaction", "crash"), WAYS)
def test_run_ends_within_seconds_when_its_server_is_gone(server, executor, transaction, crash):
    lock_out = LockOut(server, crash=crash)
    outcomes = []
    with EXECUTORS[executor].opened() as options:
        operation = inserts.using(**options, transaction=transaction)
        with pytest.raises(DatabaseUnreachable, match="'gone'") as caught:
            for outcome in operation.stream(range(SIZE)):
                outcomes.append(outcome)
                lock_out()
    assert lock_out.seconds() < SECONDS
    check_report(caught.value.report, server, at_work=4 + 2 * 10 * (transaction == "chunk"), outcomes=outcomes)


@pytest.mark.parametrize("transaction", ["object", "chunk", None])
def test_run_goes_on_when_its_server_is_back(server, transaction):
    done = []
    for outcome in inserts.using(transaction=transaction, start_method="fork").stream(range(500)):
        done.append(outcome)
        if len(done) == 60:
            server.lock_out()
            timer = threading.Timer(0.5, server.let_in)
            timer.start()
    timer.join()
    saved = {outcome.value for outcome in done if outcome.ok}
    assert len(done) == 500
    assert saved <= {*server.numbers()}
    assert len(saved) >= 500 - 2 * (10 if transaction == "chunk" else 1)


@pytest.fixture
def tags(server, monkeypatch):
    """500 rows, of which the caller reads 50 keys at a time."""
    monkeypatch.setattr(querysets, "PAGE_SIZE", 50)
    with connections["gone"].schema_editor() as editor:
        editor.create_model(Tag)
    Tag.objects.using("gone").bulk_create(Tag(name=f"tag {number}") for number in range(500))
    return Tag.objects.using("gone")


@pooled_operation(workers=2, databases=("gone",), chunksize=5, window=20)
def renames(tag):
    time.sleep(0.001)
    tag.name += " renamed"
    tag.save()


def check_tags(report):
    connections["gone"].close()
    renamed = Tag.objects.using("gone").filter(name__endswith="renamed").count()
    assert report.succeeded <= renamed <= report.succeeded + report.lost
    assert report.total < 500 or report.skipped


def test_run_over_rows_ends_within_seconds(server, tags):
    lock_out = LockOut(server, after=5)
    with pytest.raises(DatabaseUnreachable) as caught:
        renames.using(progress=lock_out, start_method="fork").map(tags.all())
    assert lock_out.seconds() < SECONDS
    server.let_in()
    check_tags(caught.value.report)


def test_caller_reads_keys_on_when_its_server_is_back(server, tags):
    def blinks(done, _total):
        if done >= 100 and threads[0].ident is None:
            server.lock_out()
            threads[0].start()

    threads = [threading.Timer(0.5, server.let_in)]
    report = renames.using(progress=blinks, start_method="fork").map(tags.all())
    threads[0].join()
    assert report.total == 500
    assert report.succeeded >= 498
    check_tags_of = Tag.objects.using("gone").filter(name__endswith="renamed").count()
    assert report.succeeded <= check_tags_of


def test_migration_ends_within_seconds(server, tags):
    lock_out = LockOut(server, after=5)
    state = ProjectState.from_apps(apps)
    operation = RunPooled(renames.func, queryset="tests.Tag", workers=2, chunksize=5, window=20, progress=lock_out)
    with pytest.raises(DatabaseUnreachable) as caught:
        with connections["gone"].schema_editor(atomic=False) as editor:
            operation.database_forwards("tests", editor, state, state)
    assert lock_out.seconds() < SECONDS
    server.let_in()
    check_tags(caught.value.report)


@pytest.mark.parametrize("executor", ["process", "thread"])
def test_pipeline_ends_within_seconds(server, executor):
    lock_out = LockOut(server, after=10)
    pipeline = (passes.using(executor="thread") | inserts.using(executor=executor)).using(progress=lock_out)
    with pytest.raises(DatabaseUnreachable) as caught:
        pipeline.map(range(SIZE))
    assert lock_out.seconds() < SECONDS
    check_report(caught.value.report, server, at_work=4)


def test_block_ends_within_seconds(server):
    lock_out = LockOut(server, after=10)
    options = {"databases": ("gone",), "workers": 2, "chunksize": 10, "progress": lock_out}
    with pytest.raises(DatabaseUnreachable) as caught:
        with concurrent_saves(start_method="fork", **options) as saves:
            for number in range(SIZE):
                saves.submit(inserts, number)
    assert lock_out.seconds() < SECONDS
    check_report(caught.value.report, server, at_work=4)


def test_verdict_on_a_lost_commit_does_not_wait_for_long(server):
    note = TransactionNote(xid=1000, noted_at=1, server=1).to_int()
    began = time.monotonic()
    settings = connections["gone"].settings_dict | {"NAME": "nowhere"}
    assert commit_status(note, "gone", settings) is Status.LOST
    assert commit_status(note, "gone", settings) is Status.LOST
    assert time.monotonic() - began < SECONDS


WRONG = {"NAME": "nowhere", "HOST": "/nowhere", "USER": "nobody"}


@pytest.mark.parametrize("key", WRONG)
@pytest.mark.parametrize("executor", ["process", "serial"])
def test_database_that_cannot_be_had_is_refused_in_the_caller(server, monkeypatch, key, executor):
    connections["gone"].close()
    monkeypatch.setitem(connections["gone"].settings_dict, key, WRONG[key])
    begun = []
    operation = inserts.using(executor=executor, before_fork=lambda: begun.append(1))
    for run in (operation.map, (passes | operation).map, operation.stream):
        with pytest.raises(DatabaseUnreachable, match=f"'gone' is to be had .*{WRONG[key]}") as caught:
            run([1, 2])
        assert caught.value.alias == "gone"
    with pytest.raises(DatabaseUnreachable), concurrent_saves(executor=executor, databases=("gone",)):
        pass
    assert begun == []
    assert passes.using(executor=executor).map([1]).values == [1]  # it needs no database


@needs_mariadb
@pytest.mark.django_db(transaction=True, databases=["default", "mariadb"])
@pytest.mark.parametrize(("key", "value"), [("PASSWORD", "wrong"), ("NAME", "nowhere"), ("USER", "nobody")])
def test_mariadb_that_cannot_be_had_is_refused_in_the_caller(monkeypatch, key, value):
    connections["mariadb"].close()
    with monkeypatch.context() as patch:
        patch.setitem(connections["mariadb"].settings_dict, key, value)
        with pytest.raises(DatabaseUnreachable, match="'mariadb'"):
            passes.using(databases=("mariadb",), transaction="object").map([1])


def test_caller_without_connection_has_none_afterwards(server):
    connections["gone"].close()
    assert inserts.using(executor="thread").map([1]).ok
    assert connections["gone"].connection is None


def test_caller_with_connection_opens_no_other(server, monkeypatch):
    with server._server.connected() as cursor:
        cursor.execute("ALTER DATABASE gone ALLOW_CONNECTIONS false")  # for new ones
    with pytest.raises(DatabaseUnreachable, match="not currently accepting"):  # a worker has got none
        inserts.using(executor="thread", workers=1).map([1])
    assert inserts.using(executor="serial").map([1]).ok


def test_check_says_what_would_be_refused(server, monkeypatch):
    connections["gone"].close()
    monkeypatch.setitem(connections["gone"].settings_dict, "NAME", "nowhere")
    (message,) = inserts.check()
    assert message.id == "poolsave.E006"
