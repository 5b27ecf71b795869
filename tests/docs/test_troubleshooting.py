"""The page for troubleshooting quotes poolsave's messages as the code has them, and the checks by their ids."""

import ast
import re
from functools import cache

from tests.docs.pages import DOCS, ROOT

GAP = "\0"


@cache
def texts():
    """All texts of the package: those of f-strings with a gap for each value."""
    trees = [ast.parse(path.read_text()) for path in sorted((ROOT / "poolsave").rglob("*.py"))]
    return "\n".join(text_of(node) for tree in trees for node in ast.walk(tree) if isinstance(node, TEXTS))


TEXTS = ast.JoinedStr | ast.Constant


def text_of(node):
    if isinstance(node, ast.JoinedStr):
        return "".join(GAP if isinstance(part, ast.FormattedValue) else part.value for part in node.values)
    return node.value if isinstance(node.value, str) else ""


PAGE = (DOCS / "troubleshooting.md").read_text()
OURS, OTHERS = PAGE.split("## Messages of Django, drivers and Python")


def test_messages_are_quoted_as_they_are():
    quoted = re.findall(r"^\| `(.*?)` \|", OURS, re.MULTILINE)
    assert len(quoted) > 30
    assert [quote for quote in quoted if not is_in_the_code(quote)] == []


def is_in_the_code(quote):
    return all(piece.strip(" ()") in texts() for piece in quote.split("..."))


LEAST = 15
"""Characters. What is shorter on the page about pitfalls is a word and no message."""


def test_messages_that_pitfalls_quote_are_on_the_page():
    symptoms = re.findall(r"^\d+\. (.*?) — ", (DOCS / "pitfalls.md").read_text(), re.MULTILINE)
    quoted = [quote for symptom in symptoms for quote in re.findall(r'"(.*?)"', symptom) if len(quote) >= LEAST]
    assert len(quoted) > 20
    pieces = [piece.strip() for quote in quoted for piece in quote.split("...")]
    assert [piece for piece in pieces if piece not in PAGE] == []


def test_every_id_of_a_check_is_in_the_table():
    written = set(re.findall(r"poolsave\.[EWI]\d{3}", (DOCS / "reference" / "checks.md").read_text()))
    assert written == set(re.findall(r"poolsave\.[EWI]\d{3}", texts()))
