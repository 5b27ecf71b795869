"""A function that workers cannot find, since it is in no script that they import, is refused in words that help."""

import pickle
import sys
from types import ModuleType

import pytest

from poolsave import InvalidOperation, Options, concurrent_saves, pooled_operation
from poolsave._runs.operation_spec import OperationSpec
from poolsave._runs.preparation import prepare_run


@pytest.fixture
def main(monkeypatch):
    """A `__main__` as in a shell, with a function that was typed into it."""
    module = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    exec("def double(number):\n    return 2 * number", vars(module))
    return module


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_function_of_a_shell_is_refused_before_the_start(main, method):
    main.double = operation = pooled_operation(main.double, transaction=None, workers=1, progress=False)
    with pytest.raises(InvalidOperation, match=r"double was typed into a shell or notebook.*put it into a module"):
        operation.using(start_method=method).map([1])
    with pytest.raises(InvalidOperation, match="double was typed"):
        (operation | operation).using(start_method=method).map([1])
    for options in ({"start_method": "fork"}, {"executor": "thread"}):
        assert operation.using(**options).map([1]).values == [2]


def test_function_of_a_shell_is_refused_by_a_block(main):
    with concurrent_saves(start_method="spawn", workers=1, transaction=None) as saves:
        with pytest.raises(InvalidOperation, match="double was typed"):
            saves.submit(main.double, 1)
    with concurrent_saves(start_method="fork", workers=1, transaction=None) as saves:
        assert saves.submit(main.double, 1).result(30) == 2


def test_function_under_the_guard_is_named_by_the_worker(main):
    main.__file__ = "script.py"
    options = Options.resolve({"transaction": None, "start_method": "spawn"})
    job = prepare_run(OperationSpec(function=main.double, options=options)).job
    sent = pickle.loads(pickle.dumps(job))
    del main.double  # the script is imported by another name there
    with pytest.raises(InvalidOperation, match=r"double.*nor under if __name__ == \"__main__\""):
        sent._unpickled_function()
