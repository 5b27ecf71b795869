"""Two apps, and a SQLite file beside manage.py, or another one that PROJECT_DATABASE names."""

import os
from pathlib import Path

DATABASE = os.environ.get("PROJECT_DATABASE", str(Path(__file__).parent / "db.sqlite3"))

SECRET_KEY = "only for this example"
INSTALLED_APPS = ["catalogue", "orders"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DATABASE,
        "OPTIONS": {"timeout": 60},
        # A file, since the processes of a real pool could not reach Django's test database in memory.
        "TEST": {"NAME": f"{DATABASE}-test"},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
