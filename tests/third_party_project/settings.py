"""Django with seven apps that write rows beside an object's own, on the database that the environment names."""

import json
import os

SECRET_KEY = "only for tests"
DATABASES = {"default": json.loads(os.environ["TEST_DATABASE"])}
ON_POSTGRES = DATABASES["default"]["ENGINE"] == "django.db.backends.postgresql"
WITHOUT_MIGRATIONS = ["auth", "contenttypes", "auditlog", "reversion", "taggit"]
MIGRATION_MODULES = dict.fromkeys(WITHOUT_MIGRATIONS)  # their tables are made at once, in a fraction of the time
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "auditlog",
    "mptt",
    "reversion",
    "taggit",
    "treebeard",
    *(["pgtrigger", "pghistory"] if ON_POSTGRES else []),
    "tests.third_party_project",
]
PGTRIGGER_MIGRATIONS = False
PGTRIGGER_INSTALL_ON_MIGRATE = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
