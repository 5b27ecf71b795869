"""poolsave needs no driver of a database that a project does not use."""

import subprocess
import sys

WITHOUT_DRIVERS = """
import sys
sys.modules.update(dict.fromkeys(["psycopg", "psycopg2", "MySQLdb"]))
from django.conf import settings
settings.configure()
import poolsave, poolsave.executors, poolsave.migrations, poolsave.testing
poolsave.pooled_operation(executor="serial", transaction=None)(abs).map([1]).raise_if_failed()
"""


def test_poolsave_imports_without_any_driver():
    done = subprocess.run([sys.executable, "-c", WITHOUT_DRIVERS], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.returncode == 0


ANOTHER_DATABASE = """
import sys
from django.conf import settings
settings.configure(INSTALLED_APPS=["django.contrib.contenttypes"], DATABASES={
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[1]},
    "legacy": {"ENGINE": "driver_that_is_not_installed"},
})
import django
django.setup()
from django.core.management import call_command
from poolsave import concurrent_saves, pooled_operation
from django.contrib.contenttypes.models import ContentType

def count(_number):
    return ContentType.objects.count()

if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    for options in ({"start_method": "fork"}, {"start_method": "forkserver"}, {"executor": "thread"}):
        operation = pooled_operation(workers=1, progress=False, **options)(count)
        print(operation.map([1]).values)
        with concurrent_saves(workers=1, progress=False, **options) as saves:
            print([saves.submit(count, 1).result()])
    print(len(operation.dry_run([1]).errors))
"""


def test_database_without_its_driver_stops_no_run(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ANOTHER_DATABASE)
    command = [sys.executable, str(script), str(tmp_path / "db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.split() == ["[1]"] * 6 + ["0"]
