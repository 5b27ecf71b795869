"""Every public name has its entry in the reference: what can be imported, and classes of what is given."""

import re

from tests.docs.pages import DOCS, ROOT

SURFACE = (ROOT / "tests" / "unit" / "public_surface.txt").read_text()
ENTRIES = [
    name
    for page in (DOCS / "reference").glob("*.md")
    for name in re.findall(r"^\.\. (?:auto\w+|py:data):: ([\w.]+)", page.read_text(), re.MULTILINE)
]


def public_names():
    """Give (module, name) for each line of the list that is not indented."""
    for section in re.split(r"^\[", SURFACE, flags=re.MULTILINE)[1:]:
        module, _bracket, lines = section.partition("]\n")
        for name in re.findall(r"^(?:class |def )?(\w+)", lines, re.MULTILINE):
            yield module, name


def test_every_public_name_has_its_entry():
    entries = {entry.rpartition(".")[2] for entry in ENTRIES}
    assert [f"{module}: {name}" for module, name in public_names() if name not in entries] == []
    assert len(set(public_names())) > 70  # the list has been read


def test_no_name_has_two_entries():
    assert sorted(ENTRIES) == sorted(set(ENTRIES))
