"""A server that crashes in the middle of a durable run costs time: each row once, none lost, and the ledger says so."""

import json
import os
import random
import subprocess
import sys
import textwrap
from contextlib import contextmanager

import pytest

from tests.conftest import wait_until

SCRIPT = """
    import json, os, sys, time

    import django
    from django.conf import settings
    from tests.support.postgres import settings_from_url

    orders = json.loads(sys.argv[1])
    settings.configure(
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "poolsave.ledger", "tests"], USE_TZ=True,
        DATABASES={"default": settings_from_url(orders["url"])}, DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    )
    django.setup()

    from django.core.management import call_command
    from django.db import Error, connection
    from poolsave import PoolsaveError, Run, pooled_operation
    from poolsave.ledger.models import Chunk, Failure
    from tests.models import Thing
    from tests.support.durable import counts, entries, ledger, make_things, visited

    @pooled_operation(progress=False, workers=3, chunksize=6, start_method="fork", databases=("default",))
    def counts_slowly(row):
        counts.func(row)
        time.sleep(0.005)
        while row.pk == orders["rows"] and not os.path.exists(orders["crashed"]):
            time.sleep(0.01)

    if __name__ == "__main__":
        call_command("migrate", run_syncdb=True, verbosity=0)
        rows = make_things("default", orders["rows"])
        connection.close()
        operation = counts_slowly.using(transaction=orders["mode"])
        told = {"lost": 0, "sessions": 0, "errors": []}

        def until(run, status):
            while True:
                told["sessions"] += 1
                try:
                    report = operation.map(rows, run=run)
                except (Error, PoolsaveError) as error:
                    told["errors"].append(f"{type(error).__name__}: {error}")
                    time.sleep(0.1)
                    continue
                told["lost"] += report.lost
                if report.run.status in status:
                    return report.run
                if told["sessions"] > 100:
                    sys.exit(f"it does not come to an end: {report.run} {ledger('default', 'crashed')}")

        run = until(Run("crashed"), ["finished", "finished with failures"])
        row, ranges, failures = ledger("default", "crashed")
        saved = visited("default")
        done, failed = (sum(each[at] for each in ranges) for at in (2, 3))
        told["before"] = {
            "done": [run.done, row.done, done, sum(saved.values()), len(entries("default"))],
            "failed": [run.failed, row.failed, failed, len(failures), [*saved.values()].count(0)],
        }
        until(Run("crashed", retry={}), ["finished"])
        told["visits"] = sorted(set(visited("default").values()))
        told["entries"] = entries("default") == [*range(1, orders["rows"] + 1)]
        told["ranges"] = [each[:2] for each in ledger("default", "crashed")[1]]
        print(json.dumps(told))
"""


@contextmanager
def running(server, folder, **orders):
    """Run the script on that server, in an empty database."""
    with server.connected() as cursor:
        cursor.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    script = folder / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    process = subprocess.Popen(
        [sys.executable, str(script), json.dumps({"url": server.url, **orders})],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**environment, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


def saved_rows(server):
    """How many rows have been saved, as another client sees it; 0 before there is a table."""
    with server.connected() as cursor:
        cursor.execute("SELECT to_regclass('tests_auditentry') IS NOT NULL")
        if not cursor.fetchone()[0]:
            return 0
        cursor.execute("SELECT count(*) FROM tests_auditentry")
        return cursor.fetchone()[0]


def crash_and_audit(server, folder, mode, *, crashes, rows):
    """Crash the server so many times over the run, in both ways, and hold the ledger against the tables."""
    last = folder / "crashed"  # the last row waits for it, so that each crash hits the run
    with running(server, folder, mode=mode, rows=rows, crashed=str(last)) as process:
        for number in range(1, crashes + 1):
            due = number * (rows - 40) // (crashes + 1) + random.randrange(20)
            wait_until(lambda: process.poll() is not None or saved_rows(server) >= due, seconds=60)  # noqa: B023
            (server.crash if number % 2 else server.kill)()
            server.start()
        last.touch()
        printed, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
    told = json.loads(printed.splitlines()[-1])
    print(f"{mode}: {crashes} crashes, {told['sessions']} sessions, {told['before']}", told["errors"][:3])
    assert told["lost"] == 0
    for counts in told["before"].values():
        assert len(set(counts)) == 1
    assert told["before"]["done"][0] + told["before"]["failed"][0] == rows
    assert (told["visits"], told["entries"], told["ranges"]) == ([1], True, [["", str(rows)]])


@pytest.mark.parametrize("mode", ["chunk", "object"])
def test_each_row_is_saved_once_whatever_crashes(private_server, tmp_path, mode):
    crash_and_audit(private_server, tmp_path, mode, crashes=2, rows=300)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", ["chunk", "object"])
def test_fifty_crashes(private_server, tmp_path, mode):
    crash_and_audit(private_server, tmp_path, mode, crashes=25, rows=4000)
