"""Django for the benchmarks: one database, PostgreSQL or a SQLite file, which the environment names."""

import os
import tempfile

from tests import postgres

FOLDER_VARIABLE = "POOLSAVE_BENCHMARKS_FOLDER"
NAME_VARIABLE = "POOLSAVE_BENCHMARKS_NAME"
CHOSEN_VARIABLE = "POOLSAVE_BENCHMARKS_DATABASE"
"""Variables of the environment, so that processes that are started afresh find the same database."""

FOLDER = os.environ.setdefault(FOLDER_VARIABLE, tempfile.gettempdir())
POSTGRES = postgres.settings_from_url(postgres.url_for_this_run())
KINDS = {
    "sqlite": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": f"{FOLDER}/benchmarks.sqlite3",
        "OPTIONS": {"timeout": 60, "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL"},
    },
    "postgres": {**POSTGRES, "NAME": os.environ.get(NAME_VARIABLE, POSTGRES["NAME"])},
}

SECRET_KEY = "only for benchmarks"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "tests.benchmarks"]
DATABASES = {"default": KINDS[os.environ.get(CHOSEN_VARIABLE, "postgres")]}
MIGRATION_MODULES = {"auth": None, "contenttypes": None}  # tables are made at once, as models have them
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
