"""README is one page, and its script runs as it stands there and prints what README shows."""

import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing

from tests.docs.pages import ROOT, python_of

README = (ROOT / "README.md").read_text()
SETTINGS = """
SECRET_KEY = "only for this test"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]
OPTIONS = {"init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF"}
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3", "OPTIONS": OPTIONS}}
"""
FIGURES = re.compile(r"[\d.]+ s \(\d+ per second\)|busy for \d+%")


ERROR = re.compile(r"IntegrityError(?: \[23505\])?(, first at index .*?\}\): ).*")
"""What a database says differs: README shows PostgreSQL, and the test has SQLite."""


def without_figures(text):
    lines = text.strip().splitlines()[:5]  # on a busy machine a hint follows
    return [ERROR.sub(r"\1", FIGURES.sub("", line)) for line in lines]


def shown_by_readme():
    (shown,) = re.findall(r"```text\n(.*?)```", README, re.DOTALL)
    return shown


def run(folder, *arguments):
    paths = os.pathsep.join([str(ROOT), str(folder)])
    env = {**os.environ, "PYTHONPATH": paths, "DJANGO_SETTINGS_MODULE": "mysite.settings"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=True, timeout=100
    )


def test_the_script_runs_as_it_stands_there(tmp_path):
    (tmp_path / "mysite").mkdir()
    (tmp_path / "mysite" / "settings.py").write_text(SETTINGS)
    (script,) = python_of(README)
    (tmp_path / "create_users.py").write_text(script)
    run(tmp_path, "-m", "django", "migrate", "-v0")
    printed = run(tmp_path, "create_users.py").stdout
    assert without_figures(printed) == without_figures(shown_by_readme())
    with closing(sqlite3.connect(tmp_path / "db.sqlite3")) as database:
        assert database.execute("SELECT count(*) FROM auth_user_groups").fetchone() == (1000,)


def test_the_script_fits_on_a_screen():
    assert len(README.splitlines()) <= 150
    assert len(python_of(README)[0].strip().splitlines()) <= 30


def test_the_commands_are_those_that_ci_runs():
    commands = (ROOT / ".ci" / "run").read_text()
    for command in re.findall(r"^python -m pip install -e .*$", README, re.MULTILINE):
        install, _and, then = command.partition(" && ")
        assert install.replace("pip install -e", "pip install -q -e") in commands
        assert then in commands
