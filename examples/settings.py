"""Settings of the scripts in this folder, as any project has them. `_script.py` chooses the database of a run."""

import json
import os

SECRET_KEY = "only for these examples"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "poolsave.ledger",
    "customers",
    "documents",
    "tenants",
]
DATABASES = json.loads(os.environ.get("EXAMPLES_DATABASES", "{}"))
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
