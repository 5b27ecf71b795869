"""Settings for the type checkers, which need the models and no server."""

INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "poolsave.ledger", "tests"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
SECRET_KEY = "only for type checkers"
USE_TZ = True
