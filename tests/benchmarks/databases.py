"""The databases of a run: made at its start, emptied outside the clock, gone at its end."""

import os
import shutil
import tempfile
import time
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median

from tests.benchmarks import proxy
from tests.support import postgres

HALF_TRIP = 0.0005
"""Seconds that the server of the kind "far" is away, in each direction."""
TABLES = [
    *("auth_user_groups", "benchmarks_profile", "benchmarks_note", "benchmarks_product", "auth_user"),
    *("benchmarks_auditrow", "benchmarks_entry"),
]


def choose(kind):
    """Let the alias `default` be that database, in this process and in all that come of it."""
    from django.db import connections

    from tests.benchmarks import settings

    connections.close_all()
    os.environ["POOLSAVE_BENCHMARKS_DATABASE"] = kind
    connections.settings["default"] = connections.configure_settings({"default": {**settings.KINDS[kind]}})["default"]
    if hasattr(connections._connections, "default"):
        del connections["default"]


@contextmanager
def own_databases():
    """Databases that are there for this run only, so that nothing of anybody else's is touched.

    The environment says where they are, to the settings of this process, which must not have been read before, and to
    those of processes that are started afresh.
    """
    folder, name = tempfile.mkdtemp(prefix="poolsave-benchmarks-"), f"benchmarks_{os.getpid()}"
    os.environ |= {
        "DJANGO_SETTINGS_MODULE": "tests.benchmarks.settings",
        "POOLSAVE_BENCHMARKS_FOLDER": folder,
        "POOLSAVE_BENCHMARKS_NAME": name,
    }
    postgres.start_for_this_run()
    _on_server(f"CREATE DATABASE {name}")
    os.environ["POOLSAVE_BENCHMARKS_POSTMASTER"] = str(_find_postmaster())
    try:
        with proxy.far(postgres.settings_from_url(postgres.url_for_this_run()), Path(folder, "far"), HALF_TRIP):
            yield
    finally:
        _on_server(f"DROP DATABASE {name} WITH (FORCE)")
        shutil.rmtree(folder)


def postmaster():
    """The process id of PostgreSQL's server."""
    return int(os.environ["POOLSAVE_BENCHMARKS_POSTMASTER"])


def _find_postmaster():
    with closing(postgres.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SHOW data_directory")
        return Path(cursor.fetchone()[0], "postmaster.pid").read_text().split()[0]


def _on_server(sql):
    with closing(postgres.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(sql)


def make_tables():
    from django.core.management import call_command

    from tests.benchmarks import workloads

    call_command("migrate", verbosity=0, run_syncdb=True)
    workloads.make_group()


def empty_tables():
    """Leave nothing for the next one: neither rows nor work that the server has put off."""
    from django.db import connection

    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            for table in TABLES:
                cursor.execute(f"DELETE FROM {table}")
            cursor.execute("VACUUM")
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        else:
            cursor.execute(f"TRUNCATE {', '.join(TABLES)} RESTART IDENTITY CASCADE")
            cursor.execute("CHECKPOINT")


def fill_products(count):
    """A table of that many rows, as it is after some time: without dead rows and with statistics."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO benchmarks_product (name, price) SELECT 'product ' || n, 0 FROM generate_series(1, %s) n",
            [count],
        )
        cursor.execute("VACUUM ANALYZE benchmarks_product")
        cursor.execute("CHECKPOINT")


def count(table, where="true"):
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM {table} WHERE {where}")
        return cursor.fetchone()[0]


def round_trip():
    """Milliseconds of a `SELECT 1`: the median of many."""
    from django.db import connection

    took = []
    with connection.cursor() as cursor:
        for _ in range(200):
            began = time.perf_counter()
            cursor.execute("SELECT 1")
            took.append(1000 * (time.perf_counter() - began))
    return {"milliseconds": median(took)}


def versions():
    """What the two databases and their drivers are, as a reader of the figures needs to know."""
    import sqlite3

    import django.db.backends.postgresql.psycopg_any as driver
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_setting('server_version'), current_setting('fsync'), current_setting('synchronous_commit')"
        )
        version, fsync, synchronous = cursor.fetchone()
    module = "psycopg" if driver.is_psycopg3 else "psycopg2"
    return {
        "PostgreSQL": f"{version} (fsync {fsync}, synchronous_commit {synchronous}), on a Unix socket",
        "driver": f"{module} {__import__(module).__version__.split()[0]}",
        "SQLite": f"{sqlite3.sqlite_version} (WAL, synchronous=NORMAL, unless something else is said)",
    }
