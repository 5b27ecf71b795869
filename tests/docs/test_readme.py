"""The README's code runs as it stands there, from top to bottom, and its table of options is complete."""

import re
import sys
import types
from pathlib import Path

import pytest
from django.contrib.auth.models import Group, User

from poolsave import Options, executors

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.django_db(transaction=True, databases=["default", "second", "postgres"])
def test_the_code_runs_as_it_stands_there(monkeypatch, capsys):
    module = types.ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)
    Group.objects.create(name="customers")
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), module.__dict__)
    assert User.objects.filter(groups__name="customers").count() == 1 + 5 + 95 + 20 + 1 + 1 + 1
    assert User.objects.filter(username__endswith="-old").count() == 95 - 3
    assert "5 x IntegrityError" in capsys.readouterr().out


def test_every_option_is_in_the_table():
    (table,) = re.findall(r"## Options\n(.*?)\n## ", README, re.DOTALL)
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == Options.names()


PROMISES = {
    "blames a worker's death on one object": "blames_exactly",
    "can end an object (`timeout`)": "enforces_timeout",
    "second Ctrl-C ends at once": "can_kill",
    "begins an object at most once": "at_most_once",
    "shares memory": "shares_memory",
}


def test_the_table_of_promises_is_that_of_the_classes():
    """Every class that has promises has its row, and every row is what the class says of itself."""
    said = {True: "yes", False: "no"}
    table = [("executor", *PROMISES)]
    for name in executors.__all__:
        kind = getattr(executors, name)
        if kind is not executors.Executor and hasattr(kind, "blames_exactly"):
            table.append((f"`{name}`", *(said[getattr(kind, promise)] for promise in PROMISES.values())))
    (written,) = re.findall(r"What an executor can promise differs:\n\n(.*?)\n\n", README, re.DOTALL)
    head, _line, *rows = [tuple(map(str.strip, line.strip("|").split("|"))) for line in written.splitlines()]
    assert head == table[0]
    # The names by which `executor=` knows them stand behind those of the classes.
    assert sorted((cells[0].split(",")[0], *cells[1:]) for cells in rows) == sorted(table[1:])
