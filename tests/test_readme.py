"""The README's code runs as it stands there, from top to bottom, and its table of options is complete."""

import re
import sys
import types
from pathlib import Path

import pytest
from django.contrib.auth.models import Group, User

from poolsave import Options, executors

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.django_db(transaction=True, databases=["default", "second", "postgres"])
def test_the_code_runs_as_it_stands_there(monkeypatch, capsys):
    module = types.ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)
    Group.objects.create(name="customers")
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), module.__dict__)
    assert User.objects.filter(groups__name="customers").count() == 1 + 5 + 95 + 20 + 1 + 1
    assert User.objects.filter(username__endswith="-old").count() == 95 - 3
    assert "5 x IntegrityError" in capsys.readouterr().out


def test_every_option_is_in_the_table():
    (table,) = re.findall(r"## Options\n(.*?)\n## ", README, re.DOTALL)
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == Options.names()


def test_the_table_of_promises_is_that_of_the_classes():
    said = {True: "yes", False: "no"}
    for executor in (executors.ProcessExecutor, executors.ThreadExecutor, executors.SerialExecutor):
        promises = [executor.blames_exactly, executor.enforces_timeout, executor.can_kill, executor.shares_memory]
        assert f"| `{executor.__name__}` | {' | '.join(said[promise] for promise in promises)} |" in README
    futures = executors.FuturesExecutor
    promises = [futures.blames_exactly, futures.enforces_timeout, futures.can_kill]
    assert f"| `FuturesExecutor` | {' | '.join(said[promise] for promise in promises)} | `ThreadPool" in README
