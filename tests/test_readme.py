"""The README's code runs as it stands there, from top to bottom, and its table of options is complete."""

import re
import sys
import types
from pathlib import Path

import pytest
from django.contrib.auth.models import Group, User

from poolsave import Options

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
