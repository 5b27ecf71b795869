"""The pages and the code on them, for the tests of this folder."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def python_of(text):
    """Each block of Python in a page, as one text whose lines have the numbers that they have in the page."""
    return [
        "\n" * text.count("\n", 0, match.start(1)) + match[1]
        for match in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    ]


def name_of(page):
    return str(page.relative_to(ROOT))
