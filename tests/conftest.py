"""Pools to run tests on, and checks after every test that nothing was left behind."""

import atexit
import gc
import os
import signal
import sys
import threading
import time
from functools import cache
from pathlib import Path

import pytest
from django.contrib.contenttypes.management import create_contenttypes
from django.db import connections
from django.db.models.signals import post_migrate
from django.test import TransactionTestCase

from poolsave import executors
from poolsave._db import inspection
from poolsave._engine import throttling
from poolsave._environment import random_generators
from poolsave._environment.random_generators import find_generators
from poolsave.executors.processes import start_methods
from tests import BATCHES_WRITES
from tests.support import batched, dask_cluster, mariadb, postgres, selection
from tests.support.flushing import empty_filled_tables
from tests.support.pools import EXECUTORS, START_METHODS
from tests.support.processes import command_of, descendants

HELPERS = ("multiprocessing.forkserver", "multiprocessing.resource_tracker", "loky.backend.resource_tracker")
"""Processes that Python and loky keep for themselves until the interpreter ends."""

STARTED = time.monotonic()

# Compile once what dozens of fresh interpreters import, also where PYTHONDONTWRITEBYTECODE is set.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_timeout_set_timer(item, settings):
    """End a test that hangs, and end it again every ten seconds if it hangs while it is being ended."""

    def end(_signum, _frame):
        pytest.fail(f"it took longer than {settings.timeout} seconds")

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout, 10)
    return True


def pytest_timeout_cancel_timer(item):
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Skip what comes after so many minutes, if there is a limit: a part of all combinations, in random order."""
    minutes = os.environ.get("POOLSAVE_TEST_MINUTES")
    if minutes is not None and time.monotonic() - STARTED > 60 * float(minutes):
        pytest.skip(f"the {minutes} minutes of POOLSAVE_TEST_MINUTES are over")


def pytest_collection_finish():
    """Let the collector look only at what tests leave behind, and not at all that was imported, test after test.

    Each worker would search what is frozen for generators of random numbers: 40 ms of CPU time, thousands of times.
    """
    gc.collect()
    found = find_generators()
    random_generators.find_generators = lambda: found
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config, items):
    if BATCHES_WRITES:
        batched.leave_others_out(config, items)
    selection.mark_exhaustive(items)
    yield
    selection.put_together(items)


def pytest_configure(config):
    """Let forking be the default under pytest-xdist, too.

    Its workers have a thread of execnet's besides the one that runs the tests. It holds no lock, since it only reads a
    pipe, so that it is safe to fork beside it.
    """
    selection.look_at(config)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell has started this in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Hypothesis looks for who refers to its own generator, and what is frozen, see above, is not looked at.
    config.addinivalue_line("filterwarnings", "ignore:It looks like `register_random` was passed")
    if hasattr(config, "workerinput"):
        counted = start_methods.native_threads
        start_methods.native_threads = lambda: counted() - 1
        config.addinivalue_line("filterwarnings", "ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture(params=EXECUTORS)
def pool(request):
    """Options that put an operation on one executor and start method after the other."""
    with EXECUTORS[request.param].opened() as options:
        yield options


@pytest.fixture
def promises(pool):
    """What can be expected of that executor: it has the attributes of its class."""
    return executors.create(pool["executor"])


@pytest.fixture(params=START_METHODS)
def start_method(request):
    return request.param


needs_mariadb = pytest.mark.skipif(bool(mariadb.missing()), reason=str(mariadb.missing()))
SERVERS = ["postgres", pytest.param("mariadb", marks=needs_mariadb)]


@pytest.fixture(params=["default", *SERVERS])
def alias(request):
    """SQLite, PostgreSQL and MariaDB."""
    return request.param


@pytest.fixture(scope="session")
def private_server():
    """A PostgreSQL that tests may crash, since they leave it running again."""
    from tests.support.crashing import new_server

    found = new_server()
    yield found
    found.delete()


@pytest.fixture
def pages_of(monkeypatch):
    """Has the keys of a queryset read in pages of so many, so that a few rows fill several."""
    return lambda size: monkeypatch.setattr(inspection, "PAGE_SIZE", size)


@pytest.fixture
def looks_every(monkeypatch):
    """Has throttles asked every so many seconds."""
    return lambda seconds: monkeypatch.setattr(throttling, "INTERVAL", seconds)


@pytest.fixture
def slow_commit(transactional_db):
    """To commit a person called slow takes PostgreSQL a second."""
    with connections["postgres"].cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$;"
            "CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON tests_person DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW WHEN (NEW.name = 'slow') EXECUTE FUNCTION dawdle()"
        )
    yield
    with connections["postgres"].cursor() as cursor:
        cursor.execute("DROP FUNCTION dawdle CASCADE")


@pytest.fixture(params=SERVERS)
def server(request):
    """Databases that run in processes of their own."""
    return request.param


@pytest.fixture(scope="session")
def postgres_url():
    """Where the server is, which runs."""
    postgres.start_for_this_run()
    return postgres.url_for_this_run()


@pytest.fixture(scope="session")
def django_db_modify_db_settings():
    """Runs before the first test that needs a database."""
    postgres.start_for_this_run()
    if "mariadb" in connections:
        mariadb.start_for_this_run()


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup):
    """After every test the tables are emptied; to fill these two again would take longer than most tests."""
    TransactionTestCase._fixture_teardown = empty_filled_tables
    assert post_migrate.disconnect(create_contenttypes)
    assert post_migrate.disconnect(dispatch_uid="django.contrib.auth.management.create_permissions")
    postgres.watcher.move_to(dbname=connections["postgres"].settings_dict["NAME"])
    gc.collect()
    gc.freeze()  # models that migrations have left behind, too
    yield
    postgres.watcher.move_to()


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(request):
    connections.close_all()
    before = _belongings()
    modules = len(sys.modules)
    yield
    connections.close_all()
    gc.collect()
    if len(sys.modules) > modules:  # they stay, and to look at Dask's takes longer than most tests
        gc.freeze()
    wait_until(lambda: not _left(before), lambda: f"left behind: {_left(before)}")


def _belongings():
    sessions = _sessions()  # first, since the first look opens a connection of its own
    kept, _files = dask_cluster.belongings()
    kept |= {server.belongings()[0] for server in mariadb.StoppableServer.started}
    children = {pid: command_of(pid) for pid in descendants(kept)}
    return {
        "processes": {pid: told for pid, told in children.items() if not any(name in told for name in HELPERS)},
        "threads": {thread.ident: thread.name for thread in threading.enumerate()},
        # Without the descriptor by which this listing itself is made.
        "files": {int(fd): target for fd in os.listdir("/proc/self/fd") if (target := _target(fd))},
        "sessions": dict(sessions),
    }


def _left(before):
    now = _belongings()
    new = {kind: {key: now[kind][key] for key in now[kind].keys() - before[kind].keys()} for kind in now}
    # A pipe keeps the fork server alive, and the resource tracker listens on another.
    new["files"] = {fd: target for fd, target in new["files"].items() if fd not in _files_of_helpers()}
    return {kind: found for kind, found in new.items() if found}


def _files_of_helpers():
    from multiprocessing import forkserver, resource_tracker

    from loky.backend import resource_tracker as loky_tracker

    return {
        forkserver._forkserver._forkserver_alive_fd,
        resource_tracker._resource_tracker._fd,
        loky_tracker._resource_tracker._fd,
        *dask_cluster.belongings()[1],
        *(server.belongings()[1] for server in mariadb.StoppableServer.started),
        # A server may have been started by the test.
        *postgres.watcher.files(),
        *({_mariadb_watcher().fileno()} if mariadb.running() else ()),
    }


def _target(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def _sessions():
    """What is connected to the servers, besides this very look."""
    found = []
    if postgres.running():
        found += postgres.watcher.ask(
            "SELECT pid, datname || ' ' || query FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND datname IN "
            f"('{postgres.TEST_DATABASE}', '{postgres.settings_from_url(postgres.url_for_this_run())['NAME']}')"
        )
    if mariadb.running():
        with _mariadb_watcher().cursor() as cursor:
            cursor.execute(
                "SELECT concat('mariadb ', id), concat_ws(' ', db, command, info) FROM information_schema.processlist "
                "WHERE user = 'root' AND id <> connection_id()"
            )
            found += cursor.fetchall()
    return found


@cache
def _mariadb_watcher():
    connection = mariadb.connect()
    atexit.register(connection.close)
    return connection


def wait_until(condition, complaint=lambda: "it did not come about", seconds=10):
    """Wait for something that another process does in its own time."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        pause.wait(0.02)
    pytest.fail(complaint())


@pytest.fixture
def server_process(transactional_db):
    """The process of the session of this thread's connection."""
    connection = connections["postgres"]
    connection.ensure_connection()
    process = connection.connection.info.backend_pid
    if not Path(f"/proc/{process}/schedstat").exists():
        pytest.skip("the server runs elsewhere, or the system does not say what its processes compute")
    return process
