"""Nothing of the project's lives on in Python's fork server, and a server that cannot have Django says why."""

import concurrent.futures
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
from multiprocessing import forkserver

import pytest

from poolsave import WorkerDied
from poolsave._environment.django_setup import DjangoEnvironment
from poolsave.executors.processes.start_methods import SERVER_DIED, ensure_forkserver, why_not_preloaded
from poolsave.executors.processes.worker_handle import WorkerHandle
from tests.support import projects

MODULES = {
    "nothing": "",
    "thread": """
import threading
import time

threading.Thread(target=time.sleep, args=(60,), name="scheduler", daemon=True).start()
""",
    "socket": """
import socket

port = socket.create_server(("127.0.0.1", 0))
""",
    "failure": 'raise OSError("address already in use\\nand more")',
    "exit": "raise SystemExit(3)",
    "crash": "import os; os._exit(1)",
}
REASONS = {
    "nothing": None,
    "thread": "starts threads there ('scheduler')",
    "socket": "opens sockets there that stay open",
    "failure": "OSError: address already in use",
    "exit": "SystemExit: 3",
    "crash": SERVER_DIED,
}


TAKES_PORT = {
    "takes_port.py": """
        import os
        import socket
        import threading
        from django.apps import AppConfig

        class TakesPort(AppConfig):
            name = "takes_port"

            def ready(self):
                self.port = socket.create_server(("127.0.0.1", int(os.environ.get("PORT", 0))))
                os.environ["PORT"] = str(self.port.getsockname()[1])
                threading.Thread(target=self.port.accept, daemon=True).start()
    """,
    "script.py": """
        from django.conf import settings
        settings.configure(INSTALLED_APPS=["takes_port.TakesPort"])
        import django
        django.setup()
        from poolsave import pooled_operation

        @pooled_operation(workers=1, progress=False, transaction=None)
        def double(number):
            return 2 * number

        if __name__ == "__main__":
            try:
                double.map([1])
            except Exception as error:
                print(type(error).__name__, error)
    """,
}


@pytest.fixture
def server(monkeypatch):
    """A fork server beside that of the process, which stops at the end."""
    found = forkserver.ForkServer()
    monkeypatch.setattr(forkserver, "_forkserver", found)
    for name in ("ensure_running", "connect_to_new_process", "set_forkserver_preload"):
        monkeypatch.setattr(forkserver, name, getattr(found, name))
    yield found
    if found._forkserver_pid is not None:
        found._stop()


def module_that_does(what, folder, monkeypatch):
    """Write an importable module, and give what has a fork server import it."""
    monkeypatch.syspath_prepend(folder)
    (folder / f"does_{what}.py").write_text(MODULES[what])
    return pickle.dumps((None, f"does_{what}"))


@pytest.mark.parametrize("what", MODULES)
def test_server_is_clean_and_says_why(what, server, tmp_path, monkeypatch):
    servers = []
    start = server.ensure_running
    monkeypatch.setattr(forkserver, "ensure_running", lambda: (start(), servers.append(server._forkserver_pid)))
    reason = ensure_forkserver(module_that_does(what, tmp_path, monkeypatch))
    assert reason is None if REASONS[what] is None else REASONS[what] in reason
    assert len(servers) == (1 if reason is None else 2)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in servers[:-1])
    done = multiprocessing.get_context("forkserver").Process(target=abs, args=(1,))
    done.start()
    done.join()
    assert done.exitcode == 0
    assert server._forkserver_pid == servers[-1]
    assert why_not_preloaded() == (reason or "")


ASKS = """
from pathlib import Path
from django.db import connections

connections[{alias!r}].cursor().execute("SELECT 1")
Path(__file__).with_suffix(".done").touch()
"""


@pytest.mark.django_db(transaction=True, databases=["default", "postgres"])
@pytest.mark.parametrize("alias", ["default", "postgres"])
def test_query_of_an_import_leaves_no_connection_there(alias, server, tmp_path, monkeypatch):
    """With one of SQLite's no run is possible, and a server's lasts as long as the caller."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"asks_{alias}.py").write_text(ASKS.format(alias=alias))
    assert ensure_forkserver(pickle.dumps((DjangoEnvironment.capture(), f"asks_{alias}"))) is None
    assert (tmp_path / f"asks_{alias}.done").exists()


def test_running_server_is_left_alone(server, tmp_path, monkeypatch):
    assert ensure_forkserver(pickle.dumps((None, None))) is None
    before = server._forkserver_pid
    assert ensure_forkserver(module_that_does("thread", tmp_path, monkeypatch)) is None
    assert server._forkserver_pid == before


def test_settings_stay_in_no_file_if_server_cannot_start(server, tmp_path, monkeypatch):
    def fail():
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(forkserver, "ensure_running", fail)
    with pytest.raises(OSError, match="Too many open files"):
        ensure_forkserver(b"SECRET_KEY")
    assert os.listdir(tmp_path) == []


def test_server_that_dies_tells_of_the_guard(server, tmp_path, monkeypatch):
    """CPython 3.14 has it die of a script without a guard, before anything of poolsave's runs there."""
    (tmp_path / "unguarded.py").write_text(MODULES["crash"])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    server.set_forkserver_preload(["unguarded"])
    assert ensure_forkserver(pickle.dumps((None, None))) == SERVER_DIED
    worker = WorkerHandle(1)
    try:
        with pytest.raises(WorkerDied, match='start the run under if __name__ == "__main__"'):
            worker.start("forkserver", b"")
    finally:
        worker.close()


def test_main_is_left_to_the_preloaded_module(server):
    assert "__main__" in server._preload_modules
    ensure_forkserver(pickle.dumps((None, None)))
    assert "__main__" not in server._preload_modules


def test_two_threads_can_start_it_at_once(server):
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        found = [threads.submit(ensure_forkserver, pickle.dumps((None, None))) for _ in range(2)]
    assert [one.result() for one in found] == [None, None]


def test_worker_that_cannot_set_up_names_the_reason(tmp_path):
    """AppConfig.ready() takes a port that the caller has taken before."""
    projects.write(tmp_path, TAKES_PORT)
    command = [sys.executable, "-W", "ignore", "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False)
    assert "WorkerDied" in done.stdout, done.stderr
    assert "Address already in use" in done.stdout
