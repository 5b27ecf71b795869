"""What a session of PostgreSQL on this machine computes is counted; that of others is not."""

import os
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from django.db import connections

from poolsave._runtime.cpu_clock import SchedulerStatistics
from poolsave._worker.server_clock import ServerClock, _is_session

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "postgres"])
TICKS = os.sysconf("SC_CLK_TCK")


def ticks(process):
    """What the system itself says of its CPU time, in hundredths of a second."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def compute():
    with connections["postgres"].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM generate_series(1, 1000000)")


def test_what_the_session_computes_is_counted(server_process):
    with closing(ServerClock()) as clock:
        before, ticks_before = clock()[0], ticks(server_process)
        compute()
        counted, used = clock()[0] - before, (ticks(server_process) - ticks_before) / TICKS
    assert used > 0
    assert abs(counted - used) <= 2 / TICKS


def test_a_new_session_counts_from_when_it_is_found(server_process):
    with closing(ServerClock()) as clock:
        clock()
        connections["postgres"].close()
        assert clock() == clock()
        compute()
        found = clock()[0]
        compute()
        assert clock()[0] > found


def test_a_process_that_has_ended_leaves_no_descriptor():
    with subprocess.Popen(["sleep", "60"]) as child:
        statistics = SchedulerStatistics(str(child.pid))
        descriptor = statistics._fd
        os.fstat(descriptor)
        child.kill()
    assert statistics.read() == (0.0, 0.0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_only_a_session_of_the_database_is_one(server_process):
    name = connections["postgres"].settings_dict["NAME"]
    assert _is_session(server_process, name)
    assert not _is_session(server_process, "another")
    assert not _is_session(os.getpid(), name)
    assert not _is_session(2**22 + 1, name)
