"""The examples keep their promises, and say so by their exit status."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(*arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    return subprocess.run(
        [sys.executable, str(EXAMPLES / "create_users.py"), *arguments],
        capture_output=True, text=True, timeout=55, check=False, env={**clean, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_create_users_keeps_its_promises(database, start_method):
    url = os.environ["POOLSAVE_TEST_POSTGRES_URL"]
    done = run("--users", "300", "--database", database, "--start-method", start_method, DATABASE_URL=url)
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
