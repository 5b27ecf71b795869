"""Kills the workers of its parent and ends their server sessions, by a schedule; a script that `chaos` starts.

It is a process of its own, since the parent must stay single-threaded to fork its workers.
"""

import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import django
import psutil
from django.db import Error, connections

from tests.support.postgres import TEST_DATABASE, WATCHER
from tests.support.processes import workers_of

SESSIONS = {
    "postgresql": (
        f"SELECT pid FROM pg_stat_activity WHERE datname = '{TEST_DATABASE}' AND application_name <> '{WATCHER}' "
        "AND pid <> pg_backend_pid() ORDER BY pid",
        "SELECT pg_terminate_backend({})",
    ),
    "mysql": (
        r"SELECT id FROM information_schema.processlist WHERE db LIKE 'test\_%' AND id <> CONNECTION_ID() ORDER BY id",
        "KILL CONNECTION {}",
    ),
}
"""By vendor: how the sessions of the test databases are listed, and how one of them is ended."""
UNPROVEN = 1
"""So many workers may be killed of which it is unknown whether they were set up, before another one is. After three of
them in a row a run is given up, as it must be when no worker ever comes up; and it may learn of a death late."""


class Killer:
    def __init__(self, parent, alias, signed):
        self.parent = psutil.Process(parent)
        self.alias = alias
        self.signed = Path(signed)
        self.done = Counter(kills=0, ends=0)
        self._unproven = 0
        self._seen = set()

    def strike(self, what, which):
        if what in ("kill", "both"):
            self.until(lambda: self.kill_one(which))
        if what in ("end", "both"):
            self.until(lambda: self.end_one(which))

    def until(self, done):
        """Try again until a worker was hit, or none is left."""
        while not done():
            if not self.parent.is_running():
                sys.exit("the parent is gone")
            time.sleep(0.002)

    def kill_one(self, which):
        lines = self.signed.read_text().splitlines() if self.signed.exists() else ()
        proven = {int(line.split()[0]) for line in lines}
        if proven - self._seen:  # a worker has been set up since one was hit of which that is unknown
            self._unproven = 0
        found = workers_of(self.parent.pid)
        workers = [pid for pid in found if self._unproven < UNPROVEN or pid in proven]
        if not workers:
            return False
        pid = workers[which % len(workers)]
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # its session was ended, and so it ended
            return False
        if pid not in proven:
            self._unproven += 1
            self._seen.update(found, proven)
        self.done["kills"] += 1
        return True

    def end_one(self, which):
        connection = connections[self.alias]  # to the database of the settings, which is not the one of the tests
        listing, ending = SESSIONS[connection.vendor]
        with connection.cursor() as cursor:
            cursor.execute(listing)
            found = [row[0] for row in cursor.fetchall()]
            if not found:
                return False
            try:
                cursor.execute(ending.format(found[which % len(found)]))
            except Error:  # MariaDB says so if it has ended by itself; PostgreSQL only warns
                return False
        self.done["ends"] += 1
        return True


def main():
    django.setup()
    orders = json.loads(sys.argv[1])
    killer = Killer(orders["parent"], orders["alias"], orders["signed"])
    for milliseconds, what, which in orders["blows"]:
        time.sleep(milliseconds / 1000)
        killer.strike(what, which)
    print(json.dumps(killer.done))


if __name__ == "__main__":
    main()
