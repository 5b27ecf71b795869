"""The examples keep their promises, and say so by their exit status."""

import os
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import psutil
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*arguments, script="create_users.py", **environment):
    clean = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        capture_output=True, text=True, timeout=55, check=False, env={**clean, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_create_users_keeps_its_promises(database, start_method, postgres_url):
    done = run("--users", "300", "--database", database, "--start-method", start_method, DATABASE_URL=postgres_url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "300 succeeded" in done.stdout
    assert "5 x IntegrityError" in done.stdout
    assert "Every promise was kept" in done.stdout
    assert done.stderr == ""


def test_create_users_compares():
    done = run("--users", "100", "--compare")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith(("plain loop", "ProcessPool", "poolsave"))]


def test_create_users_starts_and_removes_a_server_of_its_own():
    with tempfile.TemporaryDirectory(prefix="poolsave-") as folder:
        os.chmod(folder, 0o755)  # as root, the server runs under a user of its own
        done = run("--users", "20", "--database", "postgres", DATABASE_URL="", TMPDIR=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "20 succeeded" in done.stdout
        assert not [name for name in os.listdir(folder) if name != ".lockfile"]  # that one is the wheel's
        told = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
        assert not any(folder in word for words in told for word in words)


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_backfill_table_keeps_its_promises(database, start_method, postgres_url):
    arguments = ["--rows", "600", "--database", database, "--start-method", start_method]
    done = run(*arguments, script="backfill_table.py", DATABASE_URL=postgres_url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "595 succeeded" in done.stdout
    assert "5 x ValueError" in done.stdout
    assert "Every promise was kept" in done.stdout
    assert done.stderr == ""


def test_backfill_table_compares():
    done = run("--rows", "100", "--compare", script="backfill_table.py")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith(("plain loop", "poolsave"))]
    assert [line[-2:] for line in lines] == [["5", "95"], ["5", "95"]]


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_import_csv_keeps_its_promises(database, start_method, postgres_url):
    arguments = ["--lines", "200", "--database", database, "--start-method", start_method]
    done = run(*arguments, script="import_csv.py", DATABASE_URL=postgres_url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "194 succeeded" in done.stdout
    assert "2 dropped" in done.stdout
    assert "2 x LookupError" in done.stdout
    assert "2 x IntegrityError" in done.stdout
    assert "Every promise was kept" in done.stdout
    assert done.stderr == ""


def test_on_dask_keeps_its_promises(postgres_url):
    done = run("--rows", "300", "--database", "postgres", script="on_dask.py", DATABASE_URL=postgres_url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "300 succeeded" in done.stdout
    assert "Every promise was kept" in done.stdout


@pytest.fixture
def manage(tmp_path):
    def run_it(*arguments):
        done = run(*arguments, script="project/manage.py", PROJECT_DATABASE=str(tmp_path / "db.sqlite3"))
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run_it


def products_without_search_key(folder):
    with closing(sqlite3.connect(folder / "db.sqlite3")) as connection:
        return connection.execute("SELECT count(*), sum(search_key = '') FROM catalogue_product").fetchone()


def test_the_project_migrates_with_a_bar_and_back_and_again(manage, tmp_path):
    first = manage("migrate")
    assert "Applying catalogue.0003_fill_search_keys... OK" in first.stdout
    assert "5000/5000" in first.stderr
    assert products_without_search_key(tmp_path) == (5000, 0)
    assert "No migrations to apply" in manage("migrate").stdout
    assert "Unapplying catalogue.0002" in manage("migrate", "catalogue", "0001").stdout
    assert "5000/5000" in manage("migrate", "catalogue").stderr
    assert products_without_search_key(tmp_path) == (5000, 0)
    manage("makemigrations", "--check", "--dry-run")


def test_the_project_s_own_tests(manage):
    assert "Ran 4 tests" in manage("test", "catalogue").stderr
