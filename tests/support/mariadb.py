"""A private MariaDB server for the tests, on a Unix socket of its own, if server and driver are installed."""

import atexit
import contextlib
import getpass
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.support import private

VARIABLE = "POOLSAVE_TEST_MARIADB_URL"
REQUIRED = "mariadb" in os.environ.get("POOLSAVE_TEST_REQUIRE", "").split(",")
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
PROGRAMS = ("mariadb-install-db", "mariadbd")
QUICK = [
    "--aria-pagecache-buffer-size=1M",
    "--innodb-buffer-pool-size=32M",
    "--innodb-doublewrite=0",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-flush-method=nosync",
    # Or columns that migrations add and drop again, test after test, stay in the table until a row is too large.
    "--innodb-instant-alter-column-allowed=never",
    "--innodb-log-file-size=16M",
    "--skip-log-bin",
    # Shorter than the tests' time limit, which cannot interrupt a driver that waits in C.
    "--innodb-lock-wait-timeout=20",
    "--lock-wait-timeout=20",
]


def missing() -> str | None:
    """What has to be installed before anything can be tested on MariaDB."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if importlib.util.find_spec("MySQLdb") is None:
        absent.append("mysqlclient")
    if absent and REQUIRED:
        raise RuntimeError(f"MariaDB is required, but not installed: {', '.join(absent)}")
    return f"not installed: {', '.join(absent)}" if absent else None


def url_for_this_run() -> str:
    """Where the server will be."""
    return private.variable(VARIABLE, lambda: f"mysql:///?unix_socket={private.new_folder()}/socket")


def settings_from_url(url: str) -> dict[str, object]:
    return {
        "ENGINE": "django.db.backends.mysql",
        "NAME": "mysql",  # which every server has; the tests use their own
        "USER": "root",
        "OPTIONS": {"unix_socket": _socket(url)},
        "TEST": {"NAME": "test_poolsave"},
    }


def _socket(url: str) -> str:
    return parse_qs(urlsplit(url).query)["unix_socket"][0]


def start_for_this_run() -> None:
    """Start the server, unless it runs. It takes seconds, so that only a run that needs a database does it."""
    socket = Path(_socket(url_for_this_run()))
    if not socket.exists():
        atexit.register(end, start(socket))


def start(socket: Path, *options: str) -> "subprocess.Popen[bytes]":
    """Start a server in the socket's folder; gives the process that keeps it until `end()`, or until we are gone."""
    # Neither program lets root own the files of a server.
    user = "mysql" if os.geteuid() == 0 else getpass.getuser()
    shutil.chown(socket.parent, user)
    common = ["--no-defaults", f"--user={user}", f"--datadir={socket.parent}/data", f"--tmpdir={socket.parent}"]
    _run("mariadb-install-db", *common, "--auth-root-authentication-method=normal", "--skip-test-db", *QUICK)
    own = [f"--socket={socket}", "--skip-networking", f"--log-error={socket}.log"]
    keeper = subprocess.Popen(
        [sys.executable, "-c", KEEPER, str(socket.parent), _found("mariadbd"), *common, *own, *QUICK, *options],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in a terminal is for the tests
    )
    _wait_for(keeper, socket)
    return keeper


KEEPER = """
import shutil, subprocess, sys
def start():
    return subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
server = start()
for _line in sys.stdin:  # until the tests have ended, also by a signal; a line says that it is to run again
    server.wait()
    server = start()
server.terminate()
try:
    server.wait(20)
except subprocess.TimeoutExpired:
    server.kill()
    server.wait()
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""


def running() -> bool:
    return VARIABLE in os.environ and Path(_socket(os.environ[VARIABLE])).exists()


def connect(**options):
    """A connection of the tests' own, past Django."""
    import MySQLdb

    own = {"unix_socket": _socket(os.environ[VARIABLE]), "user": "root", "autocommit": True}
    return MySQLdb.connect(**{**own, **options})


def lose_a_deadlock(cursor, database):
    """Make the open transaction of `cursor` the victim of a deadlock over the tags "left" and "right"."""
    with contextlib.closing(connect(database=database)) as other, other.cursor() as theirs:
        other.autocommit(False)
        # The victim is the one that has less to undo.
        theirs.executemany("INSERT INTO tests_tag (name) VALUES (%s)", [(f"heavy {n}",) for n in range(200)])
        theirs.execute("SELECT id FROM tests_tag WHERE name = 'right' FOR UPDATE")
        cursor.execute("SELECT id FROM tests_tag WHERE name = 'left' FOR UPDATE")
        other.send_query(b"SELECT id FROM tests_tag WHERE name = 'left' FOR UPDATE")
        _until_it_waits(other.thread_id())
        cursor.execute("SELECT id FROM tests_tag WHERE name = 'right' FOR UPDATE")


def kill_in_commit(session):
    """Keep COMMIT waiting from now on, and kill the session when it has come so far."""
    locker = connect()
    locker.cursor().execute("FLUSH TABLES WITH READ LOCK")

    def kill():
        with contextlib.closing(locker), locker.cursor() as cursor:
            found = f"FROM information_schema.processlist WHERE id = {session}"
            _until_it_says(cursor, f"SELECT info {found}", "COMMIT")
            cursor.execute(f"KILL {session}")
            _until_it_says(cursor, f"SELECT count(*) {found}", 0)  # or it might get the lock while it dies, and commit

    threading.Thread(target=kill).start()


def _until_it_waits(session):
    question = f"SELECT trx_state FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = {session}"
    with contextlib.closing(connect()) as watcher, watcher.cursor() as cursor:
        _until_it_says(cursor, question, "LOCK WAIT")


def _until_it_says(cursor, question, wanted):
    for _ in range(100):
        cursor.execute(question)
        if cursor.fetchall() == ((wanted,),):
            return
        time.sleep(0.15)  # the server renews what it says of locks only when nobody has asked for 0.1 s
    raise RuntimeError(f"{question} never said {wanted}")


def _found(program):
    return shutil.which(program, path=PATH)


def _run(program, *arguments):
    done = subprocess.run([_found(program), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{program} failed: {done.stdout}{done.stderr}")


def _wait_for(keeper, socket):
    for _ in range(600):
        if socket.exists():
            return
        if keeper.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"mariadbd did not come up: {Path(f'{socket}.log').read_text()}")


def end(keeper):
    keeper.stdin.close()
    keeper.wait(30)


class StoppableServer:
    """A server that a test may stop or kill, apart from the one that all tests share."""

    started = []
    """Those that outlive the test that has started them."""

    def __init__(self):
        self._socket = Path(private.new_folder(), "socket")
        # What has been committed is there after the process was killed; the system's cache outlives it.
        self._keeper = start(self._socket, "--innodb-flush-log-at-trx-commit=2")
        self.url = f"mysql:///?unix_socket={self._socket}"
        self.started.append(self)

    def belongings(self):
        """The process that keeps it, and the descriptor by which that one knows that this process is there."""
        return self._keeper.pid, self._keeper.stdin.fileno()

    def stop(self, signum=signal.SIGTERM):
        """End it: with SIGKILL as a crash does, else as an administrator does."""
        import psutil  # here, since each process that imports the settings imports this module

        (process,) = psutil.Process(self._keeper.pid).children()
        process.send_signal(signum)
        while process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        self._socket.unlink(missing_ok=True)

    def start(self):
        """Start it again, unless it runs."""
        if not self._socket.exists():
            self._keeper.stdin.write(b"\n")
            self._keeper.stdin.flush()
            _wait_for(self._keeper, self._socket)

    def connect(self):
        return connect(unix_socket=str(self._socket))

    def delete(self):
        self.started.remove(self)
        end(self._keeper)
