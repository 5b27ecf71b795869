SECRET_KEY = "x"
INSTALLED_APPS = ["django.contrib.auth","django.contrib.contenttypes"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "/tmp/x.sqlite3"}}
USE_TZ=True
