"""Imports point downward only, and only the rooms that may know Django and tqdm import them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "poolsave"
LAYERS = [
    {
        "errors",
        "_sqlstates",
        "_chunks",
        "_interrupts",
        "_warnings",
        "_inline",
        "_plain",
        "_pilot",
        "_trials",
        "_drop",
        "_psycopg2",
    },
    {
        "outcomes",
        "_envelopes",
        "_error_records",
        "_progress",
        "_connections",
        "_bootstrap",
        "_deadlines",
        "_functions",
        "_historical",
        "_estimates",
        "_mysql",
        "_defaults",
    },
    {"_versions"},
    {
        "executors",
        "_inherited",
        "_batches",
        "_causes",
        "_exports",
        "_refusals",
        "_rows",
        "_carry",
        "_hooks",
        "_servers",
        "_lock_share",
    },
    {"_transactions", "options"},
    {"_savepoints"},
    {"_replies", "_settling", "_together"},
    {"_statistics"},
    {"reports"},
    {"_straight"},
    {"_preload", "_worker", "_sources", "_calls", "_arrivals", "_stage_reports", "_waiting"},
    {"_jobs", "_querysets"},
    {"_slices"},
    {"_engine", "_results", "_preparation", "_fused"},
    {"_choosing"},
    {"_ordering", "_auto_engine", "_deaths", "_stages"},
    {"_runs", "_hops"},
    {"_finals"},
    {"_line"},
    {"_driver", "_checks", "_pipeline_runs"},
    {"pipelines"},
    {"operations", "apps"},
    {"saves", "migrations", "testing"},
    {"_pytest"},
    {"__init__"},
]
MAY_IMPORT_DJANGO = {
    "_refusals",
    "_carry",
    "_servers",
    "_preparation",
    "_defaults",
    "_versions",
    "_checks",
    "apps",
    "operations",
    "pipelines",
    "_connections",
    "_inherited",
    "_mysql",
    "_transactions",
    "_together",
    "_savepoints",
    "_settling",
    "_bootstrap",
    "_sources",
    "_querysets",
    "_rows",
    "_historical",
    "_estimates",
    "_runs",
    "migrations",
    "testing",
    "options",
    "_calls",
    "saves",
}
MODULES = sorted(ROOT.rglob("*.py"))


def room(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0]


def imports(path):
    """Names of modules that are imported, with those of this package as `poolsave.room`; hints for types left out."""
    package = ("poolsave", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(_without_type_checking(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            yield from (f"{module}.{alias.name}" if module == "poolsave" else module for alias in node.names)


def _without_type_checking(tree):
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    return tree


def layer_of(name):
    return next(number for number, rooms in enumerate(LAYERS) if name in rooms)


def test_every_room_has_a_layer():
    assert {room(path) for path in MODULES} == set().union(*LAYERS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downward(path):
    for name in imports(path):
        if name.startswith("poolsave."):
            other = name.split(".")[1]
            assert other == room(path) or layer_of(other) < layer_of(room(path)), f"{room(path)} imports {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_django_and_tqdm_stay_in_their_rooms(path):
    roots = {name.partition(".")[0] for name in imports(path)}
    assert "django" not in roots or room(path) in MAY_IMPORT_DJANGO
    assert "tqdm" not in roots or room(path) == "_progress"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_stay_short(path):
    text = path.read_text()
    assert text.count("\n") <= 260
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            assert not body or body[-1].end_lineno - body[0].lineno < 40, node.name
