"""Django for the benchmarks: one database, PostgreSQL or a SQLite file, as databases.py has told the environment."""

import os

from tests.support import postgres

FOLDER = os.environ["POOLSAVE_BENCHMARKS_FOLDER"]
POSTGRES = postgres.settings_from_url(postgres.url_for_this_run())
KINDS = {
    "sqlite_default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": f"{FOLDER}/default.sqlite3",
        "OPTIONS": {"timeout": 60},
    },
    "sqlite": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": f"{FOLDER}/benchmarks.sqlite3",
        "OPTIONS": {"timeout": 60, "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL"},
    },
    "postgres": {**POSTGRES, "NAME": os.environ["POOLSAVE_BENCHMARKS_NAME"]},
    "far": {**POSTGRES, "NAME": os.environ["POOLSAVE_BENCHMARKS_NAME"], "HOST": f"{FOLDER}/far", "PORT": ""},
}

SECRET_KEY = "only for benchmarks"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "poolsave.ledger", "tests.benchmarks"]
DATABASES = {"default": KINDS[os.environ.get("POOLSAVE_BENCHMARKS_DATABASE", "postgres")]}
MIGRATION_MODULES = {"auth": None, "contenttypes": None}  # tables are made at once, as models have them
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
