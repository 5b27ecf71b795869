"""A database that cannot be had is refused before any worker starts; one that goes in the middle ends the run at once.

What is right is what the server has in its table when it is there again.
"""

import signal
import sys
import threading
import time
import traceback
from contextlib import closing
from contextvars import ContextVar
from types import ModuleType

import pytest
from django.apps import apps
from django.db import OperationalError, connections
from django.db.backends.postgresql.base import Database
from django.db.backends.postgresql.base import DatabaseWrapper as PostgresWrapper
from django.db.backends.sqlite3.base import DatabaseWrapper as SQLiteWrapper
from django.db.migrations.state import ProjectState

from poolsave import DatabaseUnreachable, Status, concurrent_saves, pooled_operation
from poolsave._db import inspection
from poolsave._db.commit_status import TransactionNote, commit_status
from poolsave.migrations import RunPooled
from tests.conftest import needs_mariadb
from tests.models import Tag
from tests.support import mariadb
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
    """A server with a database of its own under the alias "gone", with a table for numbers."""

    def numbers(self):
        self.let_in()
        connections["gone"].close()
        with connections["gone"].cursor() as cursor:
            cursor.execute("SELECT number FROM numbers ORDER BY number")
            return [number for (number,) in cursor.fetchall()]


class Postgres(Server):
    """A private PostgreSQL, which can lock that database."""

    alias = "postgres"

    def __init__(self, request):
        self._server = private_server = request.getfixturevalue("private_server")
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


class MariaDB(Server):
    """A private MariaDB, which is stopped by its administrator, or crashes."""

    alias = "mariadb"

    def __init__(self, request):
        self._server = request.getfixturevalue("stoppable_mariadb")
        with closing(self._server.connect()) as connection:
            connection.cursor().execute("DROP DATABASE IF EXISTS gone")
            connection.cursor().execute("CREATE DATABASE gone")
        self.settings = {**mariadb.settings_from_url(self._server.url), "NAME": "gone"}

    def lock_out(self, *, crash=False):
        self._server.stop(signal.SIGKILL if crash else signal.SIGTERM)

    def let_in(self):
        self._server.start()


@pytest.fixture(scope="session")
def stoppable_mariadb():
    found = mariadb.StoppableServer()
    yield found
    found.delete()


@pytest.fixture
def kind():
    return Postgres


def on_each_server(*marks):
    return pytest.mark.parametrize(
        "kind", [Postgres, pytest.param(MariaDB, marks=[needs_mariadb, *marks])], ids=["postgres", "mariadb"]
    )


on_both_servers, on_both_at_length = on_each_server(), on_each_server(pytest.mark.exhaustive)


@pytest.fixture
def server(kind, request, django_db_blocker, monkeypatch):
    one = kind(request)
    monkeypatch.setitem(connections.settings, "gone", {**connections.settings[one.alias], **one.settings})
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


def check_report(report, server, *, at_work, outcomes=None, transaction="object"):
    """It has all objects, says the truth of each, and lets most of them be skipped. `at_work`: one per worker in its
    COMMIT, and one that waits for a connection. Without a transaction, a failed object may have left its row."""
    found = server.numbers()
    saved = {outcome.value for outcome in outcomes or report if outcome.ok}
    unknown = ["lost"] if transaction else ["lost", "failed"]
    lost = {outcome.item for outcome in outcomes or report if outcome.status in unknown}
    assert saved <= {*found} <= saved | lost
    assert len(found) == len({*found})
    assert report.total == report.succeeded + report.failed + report.lost + report.skipped
    assert report.succeeded < SIZE  # what had not begun was skipped, or not read at all
    assert report.failed + report.lost <= at_work
    assert "no connection" in report.stopped


WAYS = [
    ("fork", "object", True), ("fork", "chunk", True), ("fork", None, False), ("thread", "object", False),
    ("thread", "chunk", False), ("serial", "object", False), ("serial", None, False), ("dask", "object", False),
]  # fmt: skip


@on_both_servers
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
    assert any(outcome.error is caught.value.__cause__ for outcome in outcomes if not outcome.ok)
    at_work = 4 + 2 * 10 * (transaction == "chunk")
    check_report(caught.value.report, server, at_work=at_work, outcomes=outcomes, transaction=transaction)


@on_both_servers
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
    unknown = [Status.LOST] if transaction else [Status.LOST, Status.FAILED]
    lost = {outcome.item for outcome in done if outcome.status in unknown}
    found = server.numbers()
    assert len(done) == 500
    assert saved <= {*found} <= saved | lost
    assert len(found) == len({*found})
    assert len(saved) >= 500 - 2 * (10 if transaction == "chunk" else 1)


@pytest.fixture
def tags(server, monkeypatch):
    """500 rows, of which the caller reads 50 keys at a time."""
    monkeypatch.setattr(inspection, "PAGE_SIZE", 50)
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


@on_both_at_length
def test_run_over_rows_ends_within_seconds(server, tags):
    lock_out = LockOut(server, after=5)
    with pytest.raises(DatabaseUnreachable) as caught:
        renames.using(progress=lock_out, start_method="fork").map(tags.all())
    assert lock_out.seconds() < SECONDS
    server.let_in()
    check_tags(caught.value.report)


@on_both_at_length
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
    renamed = Tag.objects.using("gone").filter(name__endswith="renamed").count()
    assert report.succeeded <= renamed <= report.succeeded + report.lost


@on_both_at_length
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


@on_both_servers
@pytest.mark.parametrize("executor", ["process", "thread"])
def test_pipeline_ends_within_seconds(server, executor):
    lock_out = LockOut(server, after=10)
    pipeline = (passes.using(executor="thread") | inserts.using(executor=executor)).using(progress=lock_out)
    with pytest.raises(DatabaseUnreachable) as caught:
        pipeline.map(range(SIZE))
    assert lock_out.seconds() < SECONDS
    check_report(caught.value.report, server, at_work=4)


@on_both_servers
def test_block_ends_within_seconds(server):
    lock_out = LockOut(server, after=10)
    options = {"databases": ("gone",), "workers": 2, "chunksize": 10, "progress": lock_out}
    with pytest.raises(DatabaseUnreachable) as caught:
        with concurrent_saves(start_method="fork", **options) as saves:
            for number in range(SIZE):
                saves.submit(inserts, number)
    assert lock_out.seconds() < SECONDS
    check_report(caught.value.report, server, at_work=4)


def maps_stages(executor, blink):
    pipeline = passes.using(executor="thread") | inserts.using(executor=executor)
    return pipeline.using(progress=blink, keep="all").map(range(500))


def fills_a_block(executor, blink):
    options = {"executor": executor, "databases": ("gone",), "workers": 2, "chunksize": 10, "progress": blink}
    with concurrent_saves(on_failure="collect", keep="all", **options) as saves:
        for number in range(500):
            saves.submit(inserts, number)
    return saves.report


@on_both_at_length
@pytest.mark.parametrize("executor", ["process", "thread"])
@pytest.mark.parametrize("act", [maps_stages, fills_a_block])
def test_pipeline_and_block_go_on_when_their_server_is_back(server, act, executor):
    def blink(*_progress):
        lock_out()
        if lock_out.at and timer.ident is None:
            timer.start()

    lock_out, timer = LockOut(server, after=10), threading.Timer(0.5, server.let_in)
    report = act(executor, blink)
    timer.join()
    found = server.numbers()
    assert report.total == 500
    assert report.succeeded >= 498
    saved = {outcome.value for outcome in report if outcome.ok}
    assert saved <= {*found} <= saved | {outcome.item for outcome in report if outcome.status is Status.LOST}
    assert len(found) == len({*found})


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
        with pytest.raises(
            DatabaseUnreachable, match=f"cannot connect to the database 'gone' .*{WRONG[key]}"
        ) as caught:
            run([1, 2])
        assert caught.value.alias == "gone"
    with pytest.raises(DatabaseUnreachable), concurrent_saves(executor=executor, databases=("gone",)):
        pass
    assert begun == []
    assert passes.using(executor=executor).map([1]).values == [1]  # it needs no database


@pytest.mark.django_db(transaction=True, databases=["default", "second"])
@pytest.mark.parametrize("executor", ["process", "serial"])
def test_sqlite_without_its_folder_is_refused_in_the_caller(monkeypatch, tmp_path, executor):
    connections["second"].close()
    monkeypatch.setitem(connections["second"].settings_dict, "NAME", str(tmp_path / "missing" / "db"))
    began = time.monotonic()
    operation = passes.using(executor=executor, databases=("second",), transaction="object", before_fork=pytest.fail)
    with pytest.raises(DatabaseUnreachable, match=r"'second' \(there is no folder '.*missing'"):
        operation.map([1, 2])
    assert time.monotonic() - began < inspection.PATIENCE


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


@pytest.fixture
def clerk(server, monkeypatch):
    """A function that sets how many connections the role of "gone" can have."""
    with server._server.connected() as cursor:
        cursor.execute("DROP ROLE IF EXISTS clerk")
        cursor.execute("CREATE ROLE clerk LOGIN")
    with connections["gone"].cursor() as cursor:
        cursor.execute("GRANT ALL ON numbers TO clerk")
    connections["gone"].close()
    monkeypatch.setitem(connections["gone"].settings_dict, "USER", "clerk")

    def limit(count):
        with server._server.connected() as cursor:
            cursor.execute(f"ALTER ROLE clerk CONNECTION LIMIT {count}")

    yield limit
    with server._server.connected() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'clerk'")
    monkeypatch.undo()
    connections["gone"].close()
    with connections["gone"].cursor() as cursor:
        cursor.execute("DROP OWNED BY clerk")
        cursor.execute("DROP ROLE clerk")


@pytest.mark.parametrize("in_use", [0, 1])
def test_server_with_too_many_connections_is_waited_for(clerk, monkeypatch, in_use):
    """In the caller, before the run, if it has no connection; else in the worker."""
    monkeypatch.setattr(inspection, "PATIENCE", 0.1)
    if in_use:
        connections["gone"].ensure_connection()
    clerk(in_use)
    timer = threading.Timer(0.6, clerk, [-1])
    timer.start()
    assert inserts.using(executor="thread", workers=1).map([1, 2]).values == [1, 2]
    timer.join()


def test_server_with_too_many_connections_is_given_up(clerk, monkeypatch):
    monkeypatch.setattr(inspection, "PATIENCE", 0.1)
    monkeypatch.setattr(inspection, "MAX_START", 0.3)
    clerk(0)
    with pytest.raises(DatabaseUnreachable, match="too many connections"):
        inserts.using(executor="thread").map([1])


@pytest.fixture
def nowhere(monkeypatch, django_db_blocker):
    """An alias whose server does not run, and which is not waited for for long."""
    monkeypatch.setattr(inspection, "PATIENCE", 0.1)
    monkeypatch.setitem(connections.settings, "nowhere", {**connections.settings["postgres"], "HOST": "/nowhere"})
    with django_db_blocker.unblock():
        connections["nowhere"].close()  # which makes it
        yield
    del connections["nowhere"]


@pooled_operation(workers=1, progress=False, databases=("nowhere",), transaction=None)
def connects(_number=0):
    with connections["nowhere"].wrap_database_errors:
        connections["nowhere"].connect()


def test_run_inside_an_object_ends_the_outer_run(nowhere):
    @pooled_operation(executor="thread", workers=1, databases=("nowhere",), transaction=None)
    def nests(_number):
        connects.using(executor="serial").map([1, 2])

    with pytest.raises(DatabaseUnreachable) as caught:
        nests.map(range(20))
    assert (caught.value.report.failed, caught.value.report.succeeded) == (1, 0)
    inner = caught.value.__cause__
    assert isinstance(inner, DatabaseUnreachable)
    assert isinstance(inner.__cause__, OperationalError)


@pytest.mark.parametrize("carry", [(), (ContextVar("user", default=None),)], ids=["", "carry"])
@pytest.mark.parametrize("executor", ["thread", "fork"])
def test_error_says_what_the_driver_said(nowhere, executor, carry):
    with EXECUTORS[executor].opened() as options, pytest.raises(DatabaseUnreachable) as caught:
        connects.using(**options, carry=carry, chunksize=10).map(range(20))
    assert isinstance(caught.value.__cause__, OperationalError)


def clears_frames():
    try:
        connects()
    except OperationalError as error:
        traceback.clear_frames(error.__traceback__)
        raise


def breaks_off():
    connections["nowhere"].connection = object()  # of a driver that has broken, too
    try:
        raise Database.InterfaceError("the connection is closed")
    except Database.InterfaceError as error:
        raise OperationalError("closed") from error


@pytest.mark.parametrize("function", [clears_frames, connects, breaks_off])
def test_error_of_a_backend_costs_no_outcome(nowhere, monkeypatch, function):
    """A receiver of connection_created, for example, raises when a worker looks whether it has a connection."""

    def raises():
        raise TypeError("of the backend")

    connection = connections["nowhere"]
    monkeypatch.setattr(connection, "ensure_connection", raises)
    monkeypatch.setattr(connection, "close_if_unusable_or_obsolete", raises)
    monkeypatch.setattr(connection, "connection", None)

    @pooled_operation(executor="serial", databases=("nowhere",), transaction=None)
    def fails_at_zero(number):
        return number or function()

    report = fails_at_zero.map([1, 0, 2, 3])
    assert [outcome.status for outcome in report.failures] == [Status.FAILED]
    assert report.values == [1, 2, 3]


def test_backend_that_knows_no_connect_timeout_is_used(nowhere, monkeypatch, tmp_path):
    class OtherWrapper(SQLiteWrapper):
        vendor = "other"

    module = ModuleType("other_vendor.base")
    module.DatabaseWrapper = OtherWrapper
    monkeypatch.setitem(sys.modules, module.__name__, module)
    settings = {**connections["default"].settings_dict, "ENGINE": "other_vendor", "NAME": str(tmp_path / "db")}
    inspection.check_can_connect("default", settings)


@pytest.mark.parametrize(
    ("options", "environment", "expected"),
    [({}, {}, 5), ({"connect_timeout": 7}, {}, 7), ({}, {"PGCONNECT_TIMEOUT": "9"}, None)],
)
def test_connect_timeout_of_the_project_is_kept(nowhere, monkeypatch, options, environment, expected):
    found = []
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def connects_with(_wrapper, parameters):
        found.append(parameters.get("connect_timeout"))
        raise OperationalError("no")

    monkeypatch.setattr(PostgresWrapper, "get_new_connection", connects_with)
    monkeypatch.setitem(connections["nowhere"].settings_dict, "OPTIONS", options)
    with pytest.raises(DatabaseUnreachable):
        connects.using(transaction="object").map([1])
    assert found == [expected]
