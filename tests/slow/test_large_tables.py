"""Over a million rows memory stays flat, each row is visited once, and keys cost next to nothing to read."""

import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager

import psutil
import pytest
from django.db import connections

from tests.models import Thing, ThingByUuid
from tests.support import operations

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")

SIZES = [
    pytest.param(5_000, id="5,000"),
    pytest.param(1_000_000, id="1,000,000", marks=[pytest.mark.large, pytest.mark.timeout(3600)]),
]
FILL = {
    "postgresql": "INSERT INTO {table} ({key}, visits, {group}) SELECT {made}, 0, 0 FROM generate_series(1, %s) n",
    "mysql": "INSERT INTO {table} ({key}, visits, {group}) SELECT {made}, 0, 0 "
    "FROM (SELECT seq AS n FROM seq_1_to_1000000) AS t WHERE n <= %s",
    "sqlite": "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < %s) "
    "INSERT INTO {table} ({key}, visits, {group}) SELECT {made}, 0, 0 FROM t",
}


def fill(model, alias, count):
    connection = connections[alias]
    made = "n" if model is Thing else "gen_random_uuid()"
    statement = FILL[connection.vendor].format(
        table=model._meta.db_table, key="id", group=connection.ops.quote_name("group"), made=made
    )
    with connection.cursor() as cursor:
        cursor.execute(statement, [count])
    return model.objects.using(alias)


class Watch:
    """Of the caller: its own queries, the time that they take, and its memory above the start."""

    def __init__(self):
        self.seconds = self.queries = self.growth = 0
        self._before = self._memory()

    @staticmethod
    def _memory():
        return psutil.Process().memory_info().rss

    def query(self, execute, *query):
        began = time.perf_counter()
        try:
            return execute(*query)
        finally:
            self.seconds += time.perf_counter() - began
            self.queries += 1

    def progress(self, _done, _total):
        self.growth = max(self.growth, self._memory() - self._before)


def visit_all(rows, alias):
    watch = Watch()
    operation = operations.visit.using(
        databases=(alias,), transaction="chunk", keep="failures", workers=2, progress=watch.progress
    )
    with connections[alias].execute_wrapper(watch.query):
        report = operation.bind(alias=alias).map(rows)
    growth = watch.growth / 2**20
    print(
        f"\n{rows.model.__name__} on {alias}: {report.total} rows in {report.elapsed:.0f} s, the caller grew by "
        f"{growth:.1f} MB, and its {watch.queries} queries took {100 * watch.seconds / report.elapsed:.2f} %"
    )
    assert growth < 40
    return report


@pytest.mark.parametrize("size", SIZES)
def test_every_row_of_a_large_table_is_visited_once(alias, size):
    rows = fill(Thing, alias, size)
    assert visit_all(rows.all(), alias).succeeded == size
    assert rows.filter(visits=1).count() == size


@pytest.mark.parametrize("size", SIZES)
def test_uneven_keys_beside_another_session(size):
    """Nine tenths of the rows are gone from the middle of the key space; no row that stays is missed or done twice."""
    rows = fill(ThingByUuid, "postgres", size)
    rows.filter(pk__gt="0ccccccc" + "0" * 24, pk__lt="f3333333" + "0" * 24).delete()
    with neighbour("postgres"):
        report = visit_all(rows.all(), "postgres")
    assert report.failed == report.lost == 0
    assert size * 0.05 < report.succeeded < size * 0.2
    assert rows.filter(visits__gt=1).count() == 0
    assert rows.filter(group__in=(0, 2)).exclude(visits=1).count() == 0
    assert rows.filter(group=1).exists()
    assert rows.filter(group=2).exists()


@contextmanager
def neighbour(alias):
    """Another session that adds rows of group 1, takes rows away, and puts rows into group 2, all the time."""
    told = connections[alias].settings_dict
    arguments = [str(told[name]) for name in ("NAME", "USER", "HOST", "PORT", "PASSWORD")]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(NEIGHBOUR), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline().strip() == "begun"
        yield
        assert process.poll() is None
    finally:
        process.communicate(input="stop", timeout=30)


NEIGHBOUR = """
    import select, sys
    try:
        import psycopg as driver
    except ImportError:
        import psycopg2 as driver

    names = ("dbname", "user", "host", "port", "password")
    session = driver.connect(**{name: value for name, value in zip(names, sys.argv[1:]) if value})
    session.autocommit = True
    cursor = session.cursor()
    any_row = 'SELECT id FROM tests_thingbyuuid WHERE id > gen_random_uuid() ORDER BY id LIMIT 1'
    old_row = any_row.replace("WHERE", 'WHERE "group" = 0 AND')
    print("begun", flush=True)
    while not select.select([sys.stdin], [], [], 0.002)[0]:
        cursor.execute('INSERT INTO tests_thingbyuuid (id, visits, "group") VALUES (gen_random_uuid(), 0, 1)')
        cursor.execute(f'UPDATE tests_thingbyuuid SET "group" = 2 WHERE id = ({old_row})')
        cursor.execute(f'DELETE FROM tests_thingbyuuid WHERE id = ({any_row})')
    session.close()
"""
