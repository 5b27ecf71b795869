"""A worker runs the code that the caller has, or nothing: not what it imported before the caller reloaded a module, nor
what has been written to the file since the caller imported it."""

import importlib
import sys

import pytest
from django.db.migrations.loader import MigrationLoader

from poolsave import InvalidOperation, concurrent_saves, pooled_operation
from poolsave._pickling.code import CodeVersion
from poolsave.executors.processes import start_methods
from tests.executors.test_fork_server import server  # noqa: F401  a fixture
from tests.history import migrations as history_migrations
from tests.support import operations

SOURCE = """
from poolsave import pooled_operation

@pooled_operation(transaction=None, workers=1, progress=False)
def answers(number):
    return {value!r}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a module, which can be imported and is gone after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(value):
        (tmp_path / "changing.py").write_text(SOURCE.format(value=value))

    yield write
    sys.modules.pop("changing", None)


def test_a_reloaded_module_is_not_the_fork_servers(write, server, monkeypatch):  # noqa: F811
    monkeypatch.setattr(start_methods, "_specs_at_start", {})
    write("old")
    module = importlib.import_module("changing")
    before = module.answers.using(start_method="forkserver").map([1])
    write("new code")
    importlib.reload(module)
    after = module.answers.using(start_method="forkserver").map([1])
    pool = module.answers.using(executor="process-pool", start_method="forkserver").map([1])
    assert (before.values, after.values, pool.values) == (["old"], ["new code"], ["new code"])


def test_module_reloaded_from_its_file_is_the_fork_servers(server, monkeypatch):  # noqa: F811
    """As Django's `migrate` reloads each package of migrations: a fresh interpreter would know nothing else."""
    monkeypatch.setattr(start_methods, "_specs_at_start", {})
    MigrationLoader(None)
    operation = operations.parent_of_worker.using(start_method="forkserver", workers=1)
    before = operation.map([1])
    spec = history_migrations.__spec__
    MigrationLoader(None)
    assert history_migrations.__spec__ is not spec
    assert operation.map([1]).values == before.values == [server._forkserver_pid]


def test_a_changed_file_is_refused_until_it_is_reloaded(write):
    write("old")
    module = importlib.import_module("changing")
    write("new code")
    with pytest.raises(InvalidOperation, match="answers of the module 'changing' is other code in the worker"):
        module.answers.using(start_method="spawn").map([1])
    with concurrent_saves(workers=1, transaction=None, start_method="spawn", on_failure="collect") as saves:
        saves.submit(module.answers, 1)
    assert isinstance(saves.report.failures[0].error, InvalidOperation)


def made(source, loader="SourceFileLoader"):
    names = {"__name__": __name__}
    exec(source, names)
    return CodeVersion.of(names["function"])._replace(made_by=loader), names["function"]


BODY = "def function(x):\n    return sorted([x {operator} {number}], key=lambda y: y in {{'a', 'b'}})\n"


@pytest.mark.parametrize(
    ("changes", "same"), [({}, True), ({"operator": "-"}, False), ({"number": 2}, False), ({"number": "1.0"}, False)]
)
def test_versions_differ_where_code_does(changes, same):
    version, function = made(BODY.format(operator="+", number=1))
    for number in range(5000):  # the interpreter adapts code that runs often
        function(number)
    other, _function = made(BODY.format(**{"operator": "+", "number": 1, **changes}))
    assert (version == other) is same
    assert CodeVersion.of(function).digest == version.digest != b""


def test_code_that_was_made_in_another_way_is_not_compared():
    version, _function = made(BODY.format(operator="+", number=1), loader="AssertionRewritingHook")
    _version, function = made(BODY.format(operator="-", number=1))
    version.check(function)
    here = CodeVersion.of(function)
    with pytest.raises(InvalidOperation):
        here._replace(digest=version.digest).check(function)


def test_layers_around_a_function_are_looked_at():
    operation = pooled_operation(made(BODY.format(operator="+", number=1))[1])
    other = pooled_operation(made(BODY.format(operator="-", number=1))[1])
    assert CodeVersion.of(operation).digest != CodeVersion.of(other).digest
    assert CodeVersion.of(operation.bind()).digest == CodeVersion.of(operation).digest
