"""Django for the tests: SQLite files, and servers that are there for this run only."""

import importlib.util

from tests.support import mariadb, postgres, private

FOLDER = private.variable("POOLSAVE_TEST_FOLDER", private.new_folder)
POSTGRES = postgres.settings_from_url(postgres.url_for_this_run())


def sqlite(name: str) -> dict[str, object]:
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": f"{FOLDER}/real_{name}.sqlite3",
        "OPTIONS": {"timeout": 60, "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF"},
        "TEST": {"NAME": f"{FOLDER}/test_{name}.sqlite3"},
    }


SECRET_KEY = "only for tests"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "poolsave.ledger", "tests", "tests.history"]
THIRD_PARTY = ["simple_history", "polymorphic", "guardian"]
if all(importlib.util.find_spec(name) for name in THIRD_PARTY):
    INSTALLED_APPS += [*THIRD_PARTY, "tests.third_party"]
    ANONYMOUS_USER_NAME = None  # or guardian adds a user to every test database
DATABASES = {
    "default": sqlite("default"),
    "second": sqlite("second"),
    "postgres": {**POSTGRES, "CONN_MAX_AGE": 600, "TEST": {"NAME": postgres.TEST_DATABASE}},
}
DATABASES["tenants"] = {**POSTGRES, "ENGINE": "tests.support.tenants", "TEST": {"MIRROR": "postgres"}}
if importlib.util.find_spec("psycopg_pool"):
    DATABASES["pooled"] = {
        **POSTGRES,
        "OPTIONS": {"pool": {"min_size": 1, "max_size": 2}},
        "TEST": {"MIRROR": "postgres"},
    }
if not mariadb.missing():
    DATABASES["mariadb"] = {**mariadb.settings_from_url(mariadb.url_for_this_run()), "CONN_MAX_AGE": 600}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
USE_TZ = True
USE_I18N = True
LANGUAGE_CODE = "en"
