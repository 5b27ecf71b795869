"""What more well-known apps write is the same from a pool as from a loop: trees, tags, audit rows, versions, events.

They need settings of their own, and connect receivers to all models: they run in a project in a fresh process.
"""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.docs.pages import ROOT
from tests.support import projects

pytestmark = pytest.mark.programs

APPS = {
    "sqlite": ["auditlog", "mptt", "reversion", "taggit", "treebeard"],
    "postgres": ["auditlog", "mptt", "pghistory", "pgtrigger", "reversion", "taggit", "treebeard"],
}


@pytest.mark.timeout(300)  # for a busy machine; it takes less than ten
@pytest.mark.parametrize("database", APPS)
def test_third_party_tables_are_those_of_a_loop(database, tmp_path, postgres_url):
    missing = [name for name in APPS[database] if not importlib.util.find_spec(name)]
    if missing and os.environ.get("CI"):
        pytest.fail(f"these are test dependencies, but not installed: {', '.join(missing)}")
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    done = subprocess.run(
        [sys.executable, "-m", "django", "test", "--noinput", "tests.third_party_project"],
        cwd=ROOT,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
            "DJANGO_SETTINGS_MODULE": "tests.third_party_project.settings",
            "TEST_DATABASE": projects.database(database, tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ran 2 tests" in done.stderr
