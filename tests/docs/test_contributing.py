"""The tests follow the rules that CONTRIBUTING.md gives for them."""

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]
LONGEST = 60
"""Characters of a test's name. It stands in CONTRIBUTING.md, too."""


def parsed():
    for path in sorted(TESTS.rglob("test_*.py")):
        yield path.relative_to(TESTS), ast.parse(path.read_text())


def test_names_of_tests_are_short_enough_to_be_read():
    named = [
        f"{path}: {node.name}"
        for path, tree in parsed()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and len(node.name) > LONGEST
    ]
    assert named == []


def test_files_of_tests_begin_with_the_promise_they_prove():
    assert [str(path) for path, tree in parsed() if not ast.get_docstring(tree)] == []


MAY_IMPORT_PRIVATE = {"unit", "db", "worker", "executors", "support", "typing"}
"""Folders. What is elsewhere goes by public names, so that another layout of the package breaks none of it."""
STILL_PRIVATE = {"api/test_auto.py"}  # is given what else depends on how busy the machine is


def imported_by(node):
    """Give the dotted names that an import statement names."""
    if isinstance(node, ast.Import):
        return [one.name for one in node.names]
    return [f"{node.module}.{one.name}" for one in node.names] if isinstance(node, ast.ImportFrom) else []


def test_private_modules_are_imported_by_few_folders():
    found = {
        str(path)
        for path, tree in parsed()
        if path.parts[0] not in MAY_IMPORT_PRIVATE
        for node in ast.walk(tree)
        for name in imported_by(node)
        if name.startswith("poolsave.") and "._" in name
    }
    assert found - STILL_PRIVATE == set()
