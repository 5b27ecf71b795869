"""The page about the dry run is true: its code runs as it stands there, and prints what it shows."""

import re
from pathlib import Path

import pytest
from django.contrib.auth.models import User

PAGE = (Path(__file__).parents[2] / "docs" / "dry-run.md").read_text()
TIME = re.compile(r"[\d.]+ m?s\b")


@pytest.mark.django_db(transaction=True)
def test_the_code_prints_what_the_page_shows(capsys):
    users = [User(pk=number, username=f"user{number}", email="Ann@Example.org") for number in range(1, 96)]
    User.objects.bulk_create(users)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    # SQLite's one writer is told of in the page; its picture is of a server.
    shown = shown.replace("4 workers", "1 worker")
    exec(compile(code, "dry-run.md", "exec"), {"__name__": "page"})
    printed = capsys.readouterr().out
    assert TIME.sub("", printed).startswith(TIME.sub("", shown))
    assert len(printed.splitlines()) == len(shown.splitlines()) + 5
    assert User.objects.filter(email="Ann@Example.org").count() == 95
