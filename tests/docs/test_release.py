"""What is said of a release is true: its version, what it supports, and what can be installed with it."""

import re
import tomllib
from datetime import date

import poolsave
from tests.docs.pages import DOCS, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
GRID = re.findall(r'\("(3\.\d+)", "(\d\.\d)", "psycopg2?"\)', (ROOT / "noxfile.py").read_text())


def classified(prefix):
    """Give the versions that the classifiers name behind a prefix."""
    return {line.removeprefix(prefix) for line in PROJECT["classifiers"] if re.fullmatch(prefix + r"\d+\.\d+", line)}


def test_classifiers_name_the_versions_that_are_tested():
    assert classified("Programming Language :: Python :: ") == {python for python, _ in GRID}
    assert classified("Framework :: Django :: ") == {django for _, django in GRID}


def test_the_page_names_the_versions_that_are_tested():
    supported = (DOCS / "reference" / "supported.md").read_text()
    for subject, versions in zip(("Python", "Django"), zip(*GRID, strict=True), strict=True):
        assert f"| {subject} | {versions[0]} to {versions[-1]} |" in supported


def test_every_extra_is_on_the_page():
    page = (DOCS / "installation.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(PROJECT["optional-dependencies"])


def test_extras_that_anything_names_are_there():
    texts = [
        path.read_text() for folder in ("docs", "poolsave", "examples") for path in (ROOT / folder).rglob("*.[mp][dy]")
    ]
    named = {
        name
        for text in texts
        for group in re.findall(r"(?:poolsave|\.)\[([\w,]+)\]'", text)
        for name in group.split(",")
    }
    assert named - set(PROJECT["optional-dependencies"]) == set()
    assert {"psycopg", "dask"} <= named


def test_the_version_is_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+", poolsave.__version__)
    assert "version" not in PROJECT


def test_the_newest_section_of_the_changelog_is_the_version():
    headings = re.findall(r"^## \[(.+)\](?: - (.+))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    unreleased, (version, day), *_older = headings
    assert unreleased == ("Unreleased", "")
    assert version == poolsave.__version__
    assert date.fromisoformat(day)
