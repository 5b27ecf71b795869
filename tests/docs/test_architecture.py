"""The page about the architecture names files, functions and classes that exist, and these are short."""

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "poolsave"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
REFERENCES = sorted(set(re.findall(r"`([\w/]+\.py)(?:: ([\w.]+))?`", PAGE)))


def test_what_the_page_names_is_there():
    assert [f"{file}: {name}" for file, name in REFERENCES if not is_there(file, name)] == []


def test_the_page_leads_to_most_modules():
    modules = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    unnamed = modules - {file for file, _name in REFERENCES}
    assert len(unnamed) <= len(modules) / 5, f"not named: {sorted(unnamed)}"


LONGEST_MODULE, FULLEST_FOLDER, LONGEST_BODY = 420, 14, 40


def test_no_module_folder_or_function_is_too_long():
    paths = [path for path in PACKAGE.rglob("*.py") if "migrations" not in path.parts]
    folders = Counter(str(path.parent.relative_to(PACKAGE)) for path in paths)
    assert {name: files for name, files in folders.items() if files > FULLEST_FOLDER} == {}
    modules = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in paths}
    assert {name: lines for name, lines in modules.items() if lines > LONGEST_MODULE} == {}
    functions = {f"{path}: {name}": lines for path in paths for name, lines in bodies_of(ast.parse(path.read_text()))}
    assert {name: lines for name, lines in functions.items() if lines > LONGEST_BODY} == {}


def bodies_of(module):
    """Functions, and the lines of their bodies without the docstring."""
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            yield node.name, body[-1].end_lineno - body[0].lineno + 1 if body else 0


def is_there(file, name):
    path = ROOT / file if file.startswith("tests/") else PACKAGE / file
    return path.is_file() and (not name or name in names_in(path))


@cache
def names_in(path):
    return set(names_of(ast.parse(path.read_text()).body))


def names_of(body, prefix=""):
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from names_of(node.body, f"{prefix}{node.name}.")
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))
