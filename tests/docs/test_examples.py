"""Each example does what it says: SQL finds in its database what it reports. Each is short enough to be copied."""

import csv
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import django
import psutil
import pytest

from tests.conftest import wait_until
from tests.support import postgres

pytestmark = pytest.mark.programs
EXAMPLES = Path(__file__).parents[2] / "examples"
LONGEST = 60
"""Lines of an example. A longer one shows more than one idea."""


def run(script, *arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), *map(str, arguments)],
        capture_output=True, text=True, timeout=110, check=False, env={**clean, **environment},
    )  # fmt: skip


def succeeds(script, *arguments, **environment):
    done = run(script, *arguments, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


class Database:
    """A database that outlives a script, so that SQL can be asked afterwards, past Django."""

    def __init__(self, settings, connection):
        self.settings, self.connection = settings, connection

    def after(self, script, *arguments, **environment):
        """Run the script on it; gives what was printed."""
        done = succeeds(script, *arguments, EXAMPLES_DATABASES=json.dumps({"default": self.settings}), **environment)
        assert done.stderr == ""
        return done.stdout

    def ask(self, sql):
        with closing(self.connection.cursor()) as cursor:
            cursor.execute(sql)
            return cursor.fetchone()[0]


@pytest.fixture
def sqlite(tmp_path):
    path = str(tmp_path / "example.sqlite3")
    with closing(sqlite3.connect(path)) as connection:
        yield Database({"ENGINE": "django.db.backends.sqlite3", "NAME": path, "OPTIONS": {"timeout": 60}}, connection)


@pytest.fixture
def server(postgres_url):
    name = f"examples_{os.getpid()}"
    with closing(postgres.connect()) as maintenance:
        maintenance.cursor().execute(f"CREATE DATABASE {name}")
        try:
            with closing(postgres.connect(dbname=name)) as connection:
                yield Database({**postgres.settings_from_url(postgres_url), "NAME": name}, connection)
        finally:
            maintenance.cursor().execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "server"])
def database(request):
    return request.getfixturevalue(request.param)


WITHOUT_ONE = "SELECT count(*) FROM {} WHERE (SELECT count(*) FROM {} WHERE {}) <> 1"


def test_create_users_saves_users_as_reported(database, start_method):
    told = database.after("create_users.py", "--users", 300, "--start-method", start_method)
    assert "300 succeeded" in told
    assert "5 failed" in told
    assert "5 x IntegrityError" in told
    assert "305 users with a profile" in told
    assert database.ask("SELECT count(*) FROM auth_user WHERE username LIKE 'user%'") == 300
    assert database.ask("SELECT count(*) FROM auth_user WHERE email = 'first@example.org'") == 5
    assert database.ask("SELECT count(*) FROM auth_user") == 305
    for table in ("customers_profile", "auth_user_groups"):
        assert database.ask(WITHOUT_ONE.format("auth_user u", f"{table} x", "x.user_id = u.id")) == 0


def test_create_users_fails_if_the_database_differs(sqlite):
    """As its exit status tells CI."""
    sqlite.after("create_users.py", "--users", 5)
    sqlite.connection.execute("DELETE FROM customers_profile WHERE id IN (SELECT id FROM customers_profile LIMIT 1)")
    sqlite.connection.execute("DELETE FROM auth_user_groups")
    sqlite.connection.execute("UPDATE auth_user SET username = username || '-before'")
    sqlite.connection.execute("DELETE FROM auth_group")
    sqlite.connection.commit()
    done = run("create_users.py", "--users", 5, EXAMPLES_DATABASES=json.dumps({"default": sqlite.settings}))
    assert done.returncode == 1
    assert "the report and the database differ" in done.stderr


def test_create_users_leaves_nothing_on_the_server_of_the_url(postgres_url):
    databases = "SELECT string_agg(datname, ',' ORDER BY datname) FROM pg_database WHERE datname LIKE 'poolsave%'"
    with closing(postgres.connect()) as connection:
        before = Database(None, connection).ask(databases)
        done = succeeds("create_users.py", "--users", 20, "--database", "postgres", DATABASE_URL=postgres_url)
        assert "20 succeeded" in done.stdout
        assert "IntegrityError [23505]" in done.stdout  # which is PostgreSQL's
        assert Database(None, connection).ask(databases) == before


def test_create_users_removes_a_server_of_its_own():
    with tempfile.TemporaryDirectory(prefix="poolsave-") as folder:
        os.chmod(folder, 0o755)  # as root, the server runs under a user of its own
        done = succeeds("create_users.py", "--users", 20, "--database", "postgres", DATABASE_URL="", TMPDIR=folder)
        assert "20 succeeded" in done.stdout
        assert not [name for name in os.listdir(folder) if name != ".lockfile"]  # that one is the wheel's
        commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
        assert not any(folder in word for command in commands for word in command)


# What depends on the start method in the way a script is written is the same in all of them.
# Each of the others has one of its own.


def test_backfill_table_fills_each_row_once(server):
    told = server.after("backfill_table.py", "--rows", 600, "--start-method", "forkserver")
    assert "595 succeeded" in told
    assert "5 x ValueError" in told
    filled = "text <> '' AND saves = 1 AND length(fingerprint) = 64"
    assert server.ask(f"SELECT count(*) FROM documents_document WHERE {filled}") == 595
    assert server.ask("SELECT count(*) FROM documents_document WHERE text = '' AND fingerprint = ''") == 5
    assert server.ask("SELECT count(DISTINCT fingerprint) FROM documents_document WHERE text <> ''") == 595
    assert server.ask("SELECT count(DISTINCT document_id) FROM documents_change") == 595
    assert server.ask("SELECT count(*) FROM documents_change") == 595


def test_import_csv_saves_the_good_lines(server):
    told = server.after("import_csv.py", "--start-method", "fork")
    for expected in ("194 succeeded", "2 dropped", "2 x LookupError", "2 x IntegrityError"):
        assert expected in told
    failed = list(csv.reader(told.partition("imported again:\n")[2].splitlines()))
    assert [city for _name, _email, city in failed].count("Atlantis") == 2
    assert [name for name, _email, _city in failed].count("customer1") == 2
    assert len(failed) == 4
    assert server.ask("SELECT count(*) FROM customers_customer") == 194
    assert server.ask("SELECT count(*) FROM customers_customer WHERE length(postcode) = 5") == 194
    assert server.ask(WITHOUT_ONE.format("customers_customer c", "customers_welcome w", "w.customer_id = c.id")) == 0


def test_block_saves_and_revises_what_it_finds(server):
    told = server.after("block.py", "--start-method", "spawn")
    found = len(list((Path(django.__file__).parent / "core").rglob("*.py")))
    assert f"{2 * found} succeeded" in told
    revised = "saves = 2 AND text LIKE '%.py, revised'"
    assert server.ask(f"SELECT count(*) FROM documents_document WHERE {revised}") == found
    assert server.ask("SELECT count(*) FROM documents_document") == found


def test_tenant_context_writes_each_note_for_its_tenant(server):
    told = server.after("tenant_context.py", "--notes", 50, "--start-method", "spawn")
    assert told.splitlines() == ["north: 50 notes", "south: 50 notes"]
    for tenant in ("north", "south"):
        assert server.ask(f"SELECT count(DISTINCT text) FROM tenants_note WHERE tenant = '{tenant}'") == 50
    assert server.ask("SELECT count(*) FROM tenants_note") == 100


def test_on_dask_fills_each_row_once(server):
    # Dask's workers complain of their scheduler, which ends together with them.
    assert "300 succeeded" in server.after("on_dask.py", "--rows", 300, DASK_LOGGING__DISTRIBUTED="critical")
    filled = "saves = 1 AND length(fingerprint) = 64"
    assert server.ask(f"SELECT count(*) FROM documents_document WHERE {filled}") == 300
    assert server.ask("SELECT count(*) FROM documents_change") == 300


@pytest.mark.timeout(300)
def test_on_dask_goes_on_after_a_kill(server):
    databases = {"EXAMPLES_DATABASES": json.dumps({"default": server.settings})}
    clean = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    arguments = [sys.executable, str(EXAMPLES / "on_dask.py"), "--rows", "800"]
    with subprocess.Popen(arguments, env={**clean, **databases}, stderr=subprocess.DEVNULL, text=True) as script:
        wait_until(lambda: filled(server) > 0, seconds=100)
        workers = psutil.Process(script.pid).children(recursive=True)
        for process in [psutil.Process(script.pid), *workers]:
            process.kill()
    psutil.wait_procs(workers, timeout=30)
    before = filled(server)
    assert 0 < before < 800
    told = server.after("on_dask.py", "--rows", 800, DASK_LOGGING__DISTRIBUTED="critical")
    assert f"{800 - before} succeeded" in told
    assert server.ask("SELECT count(*) FROM documents_document WHERE saves = 1") == 800
    assert server.ask("SELECT count(*) FROM documents_change") == 800


def filled(server):
    if server.ask("SELECT count(*) FROM information_schema.tables WHERE table_name = 'documents_change'") == 0:
        return 0
    return server.ask("SELECT count(*) FROM documents_document WHERE fingerprint <> ''")


@pytest.fixture
def manage(tmp_path):
    def run_it(*arguments):
        return succeeds("project/manage.py", *arguments, PROJECT_DATABASE=str(tmp_path / "db.sqlite3"))

    return run_it


def products_without_search_key(folder):
    with closing(sqlite3.connect(folder / "db.sqlite3")) as connection:
        return connection.execute("SELECT count(*), sum(search_key = '') FROM catalogue_product").fetchone()


def test_project_migrates_with_a_bar_and_back_and_again(manage, tmp_path):
    first = manage("migrate")
    assert "Applying catalogue.0003_fill_search_keys... OK" in first.stdout
    assert "5000 of 5000 objects done" in first.stderr
    assert products_without_search_key(tmp_path) == (5000, 0)
    assert "No migrations to apply" in manage("migrate").stdout
    assert "Unapplying catalogue.0002" in manage("migrate", "catalogue", "0001").stdout
    assert "5000 of 5000 objects done" in manage("migrate", "catalogue").stderr
    assert products_without_search_key(tmp_path) == (5000, 0)
    manage("makemigrations", "--check", "--dry-run")


def test_project_passes_its_own_tests(manage):
    assert "Ran 7 tests" in manage("test", "catalogue", "orders").stderr


def test_project_passes_its_own_tests_with_pytest(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider"],
        cwd=EXAMPLES / "project", capture_output=True, text=True, timeout=100, check=False,
        env={
            **{name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"},
            "PROJECT_DATABASE": str(tmp_path / "db.sqlite3"),
        },
    )  # fmt: skip
    assert "3 passed" in done.stdout, done.stdout + done.stderr


def test_command_imports_orders_and_again_what_failed(manage, tmp_path):
    database, orders, failed = tmp_path / "db.sqlite3", EXAMPLES / "project" / "orders.csv", tmp_path / "failed.csv"

    def import_orders(*arguments):
        return run("project/manage.py", "import_orders", *arguments, PROJECT_DATABASE=str(database))

    def saved():
        with closing(sqlite3.connect(database)) as connection:
            return [number for (number,) in connection.execute("SELECT number FROM orders_order ORDER BY number")]

    manage("migrate", "-v0")
    tried = import_orders(orders, "--dry-run")
    assert (tried.returncode, saved()) == (1, [])
    assert "3 would succeed, 3 would fail; nothing was saved" in tried.stdout

    first = import_orders(orders, "--failures", failed)
    assert (first.returncode, saved()) == (1, ["A-1", "A-2", "A-3"])
    assert "1 x IntegrityError" in first.stdout
    assert first.stderr == f"CommandError: not every order of {orders} can be imported\n"  # and no bar

    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("INSERT INTO catalogue_product (name, price, search_key) VALUES ('Ham and eggs', 5, '')")
    second = import_orders(failed, "--failures", failed)
    assert (second.returncode, saved()) == (1, ["A-1", "A-2", "A-3", "A-4"])
    with open(failed, newline="") as file:
        assert [row["error_type"] for row in csv.DictReader(file)] == ["ValueError", "IntegrityError"]

    (tmp_path / "good.csv").write_text("number,product,quantity\nB-1,Ham and eggs,2\n")
    third = import_orders(tmp_path / "good.csv", "-v0")
    assert (third.returncode, third.stdout, third.stderr) == (0, "", "")
    assert saved() == ["A-1", "A-2", "A-3", "A-4", "B-1"]


def test_command_that_ends_early_tells_what_was_done(manage, tmp_path):
    """The file cannot be read to its end: what failed until then is told, written, and taken again."""
    orders, failed = tmp_path / "orders.csv", tmp_path / "failed.csv"
    lines = [f"B-{number},Nothing of this name,1\n" for number in range(1000)]
    orders.write_bytes("".join(["number,product,quantity\n", *lines]).encode() + b"\xff,Ham,1\n")
    manage("migrate", "-v0")
    done = run(
        "project/manage.py",
        "import_orders",
        orders,
        "--failures",
        failed,
        PROJECT_DATABASE=str(tmp_path / "db.sqlite3"),
    )
    assert done.returncode == 1
    assert done.stderr.startswith("CommandError: 'utf-8' codec can't decode byte 0xff")
    with open(failed, newline="") as file:
        numbers = [json.loads(row["item_exact"])["number"] for row in csv.DictReader(file)]
    assert numbers == [f"B-{number}" for number in range(len(numbers))] != []
    assert f"{len(numbers)} failed" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([EXAMPLES / "customers.csv"], "has no column number, product, quantity"),
        ([EXAMPLES / "project/orders.csv", "--workers", 0], "workers=0 is not valid: give a whole number from 1"),
        ([EXAMPLES / "project/orders.csv", "--failures", "nowhere/f.csv"], "nowhere/f.csv cannot be written"),
    ],
)
def test_command_refuses_in_one_line_what_cannot_work(arguments, why, tmp_path):
    done = run("project/manage.py", "import_orders", *arguments, PROJECT_DATABASE=str(tmp_path / "db.sqlite3"))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert why in done.stderr


SCRIPTS = sorted(path.name for path in EXAMPLES.glob("[!_]*.py") if path.name != "settings.py")


@pytest.mark.parametrize("script", SCRIPTS)
def test_example_is_short_and_is_run_and_listed(script):
    assert len((EXAMPLES / script).read_text().splitlines()) <= LONGEST
    assert f'"{script}"' in Path(__file__).read_text()
    assert f"examples/{script}" in (EXAMPLES / "README.md").read_text()


def test_durable_run_is_killed_paused_resumed_and_retried(tmp_path):
    database = tmp_path / "db.sqlite3"
    told = succeeds("durable/demo.py", DURABLE_DATABASE=str(database)).stdout
    assert "paused by ada" in told
    assert "7 failures to be tried again" in told  # of 8 articles with one title
    with closing(sqlite3.connect(database)) as connection:
        saved = connection.execute("SELECT revision, count(*) FROM shop_article GROUP BY 1 ORDER BY 1").fetchall()
        slugs = connection.execute("SELECT count(DISTINCT slug), count(slug) FROM shop_article").fetchone()
        ledger = connection.execute("SELECT status, done, failed FROM poolsave_ledger_run").fetchall()
        left = connection.execute("SELECT DISTINCT error_class FROM poolsave_ledger_failure WHERE resolved_at IS NULL")
        assert left.fetchall() == [("builtins.ValueError",)]
    assert saved == [(0, 4), (1, 396)]
    assert slugs == (396, 396)
    assert ledger == [("finished with failures", 389, 11)]


def test_files_of_the_projects_are_short():
    files = [path for project in ("project", "durable") for path in (EXAMPLES / project).rglob("*.py")]
    lengths = {str(path): len(path.read_text().splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
