"""A run that a script began goes on in whatever imports the function from there."""

import os
import subprocess
import sys

SCRIPT = """
import django
from django.conf import settings
from django.core.management import call_command

if not settings.configured:
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}
    settings.configure(INSTALLED_APPS=["poolsave.ledger"], DATABASES={"default": database})
    django.setup()

from poolsave import Run, pooled_operation


@pooled_operation(executor="serial", progress=False, max_failures=1)
def refuses_four(number):
    if number == 4:
        raise ValueError(number)


def by_itself(number):
    return number


def status():
    report = refuses_four.map(range(10), run=Run("numbers", key=by_itself))
    return report.run.status.replace(" ", "-")


if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    print(status())
"""


def python(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_run_of_a_script_goes_on_where_it_is_imported(tmp_path):
    (tmp_path / "numbers_of.py").write_text(SCRIPT)
    assert python(tmp_path, "numbers_of.py") == "paused"
    assert python(tmp_path, "-c", "import numbers_of; print(numbers_of.status())") == "finished-with-failures"
    assert python(tmp_path, "-m", "numbers_of") == "finished-with-failures"
