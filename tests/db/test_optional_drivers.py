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
