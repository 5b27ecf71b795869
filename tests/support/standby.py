"""A standby that follows a PostgreSQL server of the tests, and that they may hold back or kill."""

import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import psutil
from django.db import connections

from tests.conftest import wait_until
from tests.support.crashing import CrashingServer
from tests.support.postgres import settings_from_url


class Standby(CrashingServer):
    """Made by pg_basebackup; it streams from the server."""

    def __init__(self, primary):
        server = primary._server
        folder = Path(tempfile.mkdtemp(prefix="poolsave-"))
        if server.system_user is not None:  # as root: servers run as another user
            shutil.chown(folder, server.system_user)
        program = server.bin_path / "pg_basebackup"
        options = ["-D", folder, "-d", primary.url, "-R", "-X", "stream", "-c", "fast"]
        subprocess.run([program, *options], check=True, capture_output=True, user=server.system_user)
        for name in (".s.PGSQL.5432.lock", ".handle_pids.json", "log"):  # of the primary, whose folder has its socket
            (folder / name).unlink(missing_ok=True)
        super().__init__(folder)

    def pause(self):
        """Have it replay nothing any more; it still receives everything."""
        self._execute("SELECT pg_wal_replay_pause()")
        wait_until(lambda: self._execute("SELECT pg_get_wal_replay_pause_state()") == "paused")

    def resume(self):
        self._execute("SELECT pg_wal_replay_resume()")

    def promote(self):
        """Have it take writes, on a timeline of its own."""
        assert self._execute("SELECT pg_promote()")

    def kill(self):
        """All its processes leave at once."""
        postmaster = psutil.Process(self._server.get_pid())
        postmaster.send_signal(signal.SIGQUIT)
        psutil.wait_procs([postmaster], timeout=30)

    def follows(self, primary):
        """Whether it has replayed all that the primary has written."""
        with primary.connected() as cursor:
            cursor.execute("SELECT pg_current_wal_lsn()::text")
            written = cursor.fetchone()[0]
        return self._execute(f"SELECT pg_last_wal_replay_lsn() >= '{written}'::pg_lsn")

    def _execute(self, statement):
        with self.connected() as cursor:
            cursor.execute(statement)
            return cursor.fetchone()[0]


@contextmanager
def aliases(**servers):
    """Have these servers in the project's databases."""
    for alias, server in servers.items():
        connections.settings[alias] = {**connections.settings["postgres"], **settings_from_url(server.url)}
    try:
        yield
    finally:
        for alias in servers:
            connections[alias].close()
            del connections[alias]
            del connections.settings[alias]
