"""`op.check()` says what would go wrong or be slow, and runs nothing."""

import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
from contextvars import ContextVar

import psutil
import pytest
from django.contrib.auth.models import User
from django.core import checks
from django.db import connections, transaction

from poolsave import InsideTransaction, InvalidOperation, InvalidOption, PooledOperation, SharedMemoryDatabase
from tests.conftest import needs_mariadb
from tests.models import Person
from tests.support import hooks, operations, postgres

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")

quiet = operations.save_person.using(start_method="spawn")


def told(messages):
    return [message.id.removeprefix("poolsave.") for message in messages]


def test_check_of_a_good_operation_is_empty(start_method, alias):
    operation = operations.save_person.using(start_method=start_method, databases=(alias,))
    assert operation.check() == operation.check(["a", "b"]) == []


REFUSED = {
    "timeout": ({"timeout": 3, "executor": "thread"}, InvalidOption, "E001"),
    "alias": ({"databases": ("nowhere",)}, InvalidOption, "E001"),
    "hook": ({"after_fork": lambda: None}, InvalidOption, "E001"),
    "carry": ({"carry": [ContextVar("nameless")]}, InvalidOption, "E001"),
}


@pytest.mark.parametrize("options", REFUSED)
def test_errors_are_what_map_refuses_in_its_own_words(options):
    options, kind, number = REFUSED[options]
    operation = quiet.using(**options)
    (message,) = operation.check([1])
    with pytest.raises(kind) as caught:
        operation.map(["a"])
    assert (message.id, message.msg) == (f"poolsave.{number}", str(caught.value))
    assert isinstance(message, checks.Error)
    assert str(message).startswith("tests.support.operations.save_person: (poolsave.")
    assert Person.objects.count() == 0


def test_check_reports_several_errors_at_once():
    operation = quiet.using(after_fork=lambda: None, timeout=1)
    with transaction.atomic():
        assert told(operation.using(executor="process-pool").check()) == ["E003", "E001", "E001"]


def test_check_reports_an_open_transaction_and_keeps_it():
    with transaction.atomic():
        Person(name="mine").save()
        (message,) = quiet.check()
        assert message.msg == str(InsideTransaction("default"))
        assert quiet.using(executor="serial").check() == []
    assert Person.objects.count() == 1


def test_check_reports_a_fork_beside_an_open_transaction():
    with transaction.atomic(using="second"):
        Person(name="mine").save(using="second")
        (message,) = quiet.using(start_method="fork").check()
        assert message.msg == str(InsideTransaction("second"))
        assert quiet.using(start_method=None).check() == []


def test_check_reports_sqlite_in_memory(monkeypatch):
    monkeypatch.setitem(connections["default"].settings_dict, "NAME", ":memory:")
    (message,) = quiet.check()
    assert message.id == "poolsave.E004"
    with pytest.raises(SharedMemoryDatabase) as caught:
        quiet.map(["a"])
    assert message.msg == str(caught.value)


def test_check_reports_a_function_that_cannot_be_pickled():
    nameless = PooledOperation(lambda _item: None, {"transaction": None, "start_method": "spawn"})
    (message,) = nameless.check()
    assert message.id == "poolsave.E002"
    assert "<lambda> cannot be pickled" in message.msg
    assert nameless.using(start_method="fork").check() == nameless.using(executor="thread").check() == []


def test_objects_of_a_list_are_tried_and_nothing_else_is_touched():
    (message,) = quiet.check(["fine", threading.Lock()])
    assert message.id == "poolsave.W003"
    assert "index 1" in message.msg
    assert quiet.using(executor="thread").check([threading.Lock()]) == []
    generator = (number for number in [1])
    assert quiet.check(generator) == []
    assert list(generator) == [1]
    queryset = User.objects.all()
    assert quiet.check(queryset) == []
    assert queryset._result_cache is None
    (message,) = quiet.check(queryset[:3])
    with pytest.raises(InvalidOperation) as caught:
        quiet.map(queryset[:3])
    assert (message.id, message.msg) == ("poolsave.E002", str(caught.value))
    (message,) = quiet.check(queryset.order_by("username"))
    assert message.id == "poolsave.W001"
    assert "ordering" in message.msg


@pytest.fixture
def another_thread():
    metrics = hooks.Metrics()
    metrics.thread.name = "metrics"
    yield
    metrics.stop()


def test_check_names_threads_beside_a_fork(another_thread):
    (message,) = quiet.using(start_method="fork").check()
    assert message.id == "poolsave.W002"
    assert "metrics" in message.msg
    (message,) = quiet.using(start_method=None).check()
    assert (message.id, message.level) == ("poolsave.I001", checks.INFO)
    assert "metrics" in message.msg
    assert quiet.check() == []


def test_check_reports_debug(settings):
    settings.DEBUG = True
    assert told(quiet.check()) == ["W008"]


def test_check_reports_a_sqlite_file_without_wal(monkeypatch, tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "plain.sqlite3")) as plain:
        plain.execute("CREATE TABLE thing (id)")
    monkeypatch.setitem(connections["default"].settings_dict, "NAME", tmp_path / "plain.sqlite3")
    monkeypatch.setitem(connections["default"].settings_dict, "OPTIONS", {})
    (message,) = quiet.check()
    assert message.id == "poolsave.W005"
    assert "'delete'" in message.msg
    assert quiet.using(workers=1).check() == quiet.using(executor="serial").check() == []
    monkeypatch.setitem(connections["default"].settings_dict, "NAME", tmp_path / "missing.sqlite3")
    assert quiet.check() == []
    assert not (tmp_path / "missing.sqlite3").exists()


def test_check_leaves_no_sqlite_file_open_that_prevents_a_fork():
    """With a write-ahead log SQLite would keep the file of a second connection open."""
    list(User.objects.all())
    assert connections["default"].connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    path = os.path.realpath(connections["default"].settings_dict["NAME"])

    def count_open():
        return [file.path for file in psutil.Process().open_files()].count(path)

    assert count_open() == 1
    assert quiet.check() == []
    assert count_open() == 1


def test_check_reports_too_few_connections():
    served = quiet.using(databases=("postgres",))
    (message,) = served.using(workers=5000).check()
    assert message.id == "poolsave.W007"
    assert "5000 workers would need 5000 connections" in message.msg
    name = connections["postgres"].settings_dict["NAME"]
    postgres.watcher.close()  # or it has one of them
    with connections["postgres"].cursor() as cursor:
        cursor.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 4")
        try:
            assert served.using(workers=3).check() == []  # this very connection is the fourth
            assert told(served.using(workers=4).check()) == ["W007"]
        finally:
            cursor.execute(f"ALTER DATABASE {name} CONNECTION LIMIT -1")


@needs_mariadb
def test_check_reports_too_few_connections_of_mariadb():
    served = quiet.using(databases=("mariadb",))
    with connections["mariadb"].cursor() as cursor:
        cursor.execute("SELECT @@max_connections")
        (limit,) = cursor.fetchone()
    assert served.check() == []
    (message,) = served.using(workers=limit).check()
    assert message.id == "poolsave.W007"
    assert f"{limit} workers would need {limit} connections" in message.msg


def test_check_says_that_a_database_is_unreachable(monkeypatch):
    monkeypatch.setitem(connections["postgres"].settings_dict, "HOST", "/nowhere")
    (message,) = quiet.using(databases=("postgres",)).check()
    assert message.id == "poolsave.E006"
    assert "cannot connect to the database 'postgres'" in message.msg


class Pooler:
    """Stands between a client and the server, and as a pooler does gives out a process id of its own."""

    def __init__(self, settings):
        self._settings = settings
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        for _connection in range(2):  # that it can be had, and what it is
            self._serve_one()

    def _serve_one(self):
        client, _address = self._listener.accept()
        server = self._connect()
        upward = threading.Thread(target=self._pass_on, args=(client, server, lambda data: data))
        upward.start()
        self._pass_on(server, client, self._with_other_pid)
        upward.join()
        client.close()
        server.close()

    def _connect(self):
        host, port = self._settings["HOST"], self._settings["PORT"] or "5432"
        if not host.startswith("/"):
            return socket.create_connection((host, int(port)))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{port}")
        return server

    @staticmethod
    def _with_other_pid(data):
        head, mark, tail = data.partition(b"K\x00\x00\x00\x0c")  # BackendKeyData
        return head + mark + b"\x00\x0f\x42\x40" + tail[4:] if mark else data

    @staticmethod
    def _pass_on(source, target, change):
        while data := source.recv(65536):
            target.sendall(change(data))
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def close(self):
        self._thread.join()
        self._listener.close()


def test_check_reports_a_connection_pooler(monkeypatch):
    settings = connections["postgres"].settings_dict
    operation = quiet.using(databases=("postgres",))
    monkeypatch.setitem(settings, "DISABLE_SERVER_SIDE_CURSORS", True)
    (message,) = operation.check()
    assert message.id == "poolsave.W006"
    assert "DISABLE_SERVER_SIDE_CURSORS is set" in message.msg
    monkeypatch.setitem(settings, "DISABLE_SERVER_SIDE_CURSORS", False)
    pooler = Pooler(dict(settings))
    monkeypatch.setitem(settings, "HOST", "127.0.0.1")
    monkeypatch.setitem(settings, "PORT", str(pooler.port))
    messages = operation.check()
    pooler.close()
    (message,) = messages
    assert message.id == "poolsave.W006"
    assert "another server process answers" in message.msg


def test_check_reports_a_daemonic_process():
    assert hooks.checks_a_pool_in_a_worker.map([1]).values == [["poolsave.W001"]]


def test_check_reports_wrong_settings(settings):
    settings.POOLSAVE = {"workers": 0}
    (message,) = operations.pooled_operation(operations.plain_save).check()
    assert message.id == "poolsave.E001"
    assert "workers=0 (from settings.POOLSAVE)" in message.msg


PROJECT = """
    import sqlite3, sys
    import django
    from django.conf import settings

    sqlite3.connect(sys.argv[1]).execute("CREATE TABLE IF NOT EXISTS thing (id)")
    settings.configure(
        INSTALLED_APPS=["poolsave"], POOLSAVE=eval(sys.argv[2]),
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[1]}},
    )
    django.setup()
    from django.core.management import execute_from_command_line

    execute_from_command_line(["manage.py", "check", *sys.argv[3:]])
"""


@pytest.fixture
def manage_check(tmp_path):
    script = tmp_path / "manage.py"
    script.write_text(textwrap.dedent(PROJECT))
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}

    def run(options, *arguments):
        return subprocess.run(
            [sys.executable, str(script), str(tmp_path / "db.sqlite3"), repr(options), *arguments],
            capture_output=True, text=True, timeout=60, check=False, env=environment,
        )  # fmt: skip

    return run


def test_manage_check_looks_at_the_settings(manage_check):
    done = manage_check({"workers": 0, "wrokers": 3, "after_fork": "nowhere.at_all"})
    assert done.returncode == 1
    assert "(poolsave.E001) workers=0 (from settings.POOLSAVE) is not valid: give a whole number from 1" in done.stderr
    assert "wrokers=3" in done.stderr
    assert "nowhere.at_all" in done.stderr
    assert "databases='nowhere'" in manage_check({"databases": ["nowhere"]}).stderr


def test_manage_check_looks_at_the_databases_it_is_given(manage_check):
    done = manage_check({"workers": 2})
    assert (done.returncode, done.stderr) == (0, "")
    done = manage_check({"workers": 2}, "--database", "default")
    assert done.returncode == 0
    assert "(poolsave.W005) the SQLite database 'default' is not in WAL mode" in done.stderr
    assert manage_check({"executor": "serial"}, "--database", "default").stderr == ""
