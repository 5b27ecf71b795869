"""A function of a shell or notebook, which workers cannot import, is refused with the way out."""

import sys
from types import ModuleType

import pytest

from poolsave import InvalidOperation, concurrent_saves, pooled_operation


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
