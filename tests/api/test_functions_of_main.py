"""A function that workers cannot import is refused once, in the caller, with the way out: one of a shell, a notebook or
standard input, or one under the guard of the script."""

import multiprocessing
import sys
from types import ModuleType

import pytest
from django.core.checks import ERROR

from poolsave import InvalidOperation, concurrent_saves, pooled_operation
from tests.support import operations


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


def main_of_script(monkeypatch, path, source, typed=""):
    """A `__main__` that has run a script, at whose prompt (`python -i`) something was typed afterwards."""
    module = ModuleType("__main__")
    module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, "__main__", module)
    exec(compile(source, str(path), "exec"), vars(module))
    exec(compile(typed, "<stdin>", "exec"), vars(module))
    return module


DOUBLE = "def double(number):\n    return 2 * number\n"
GUARDED = 'import os\n\nif __name__ == "__main__":\n    def double(number):\n        return 2 * number\n'


def refusals(function, **options):
    """What each entry point says: the message, and that it comes before any worker is started."""
    operation = pooled_operation(function, transaction=None, workers=1, progress=False, **options)
    sys.modules["__main__"].double = operation
    messages = []
    for use in (
        lambda: operation.map([1, 2]),
        lambda: operation.stream([1, 2]).__next__(),
        lambda: (operation | operation).map([1, 2]),
        lambda: submit_to_block(operation, **options),
    ):
        with pytest.raises(InvalidOperation) as caught:
            use()
        assert multiprocessing.active_children() == []
        messages.append(str(caught.value))
    return messages


def submit_to_block(operation, **options):
    with concurrent_saves(workers=1, transaction=None, **options) as saves:
        saves.submit(operation, 1)


NO_REASON = "(the default while"
"""What begins no reason for workers that are not forked: the caller may have asked for them."""


def test_function_under_the_guard_is_refused(monkeypatch, tmp_path):
    (tmp_path / "script.py").write_text(GUARDED)
    main = main_of_script(monkeypatch, tmp_path / "script.py", GUARDED)
    for message in refusals(main.double, start_method="spawn"):
        assert 'double is defined under if __name__ == "__main__":' in message
        assert NO_REASON not in message


def test_function_typed_after_a_script_is_refused(monkeypatch, tmp_path):
    (tmp_path / "script.py").write_text("import os\n")
    main = main_of_script(monkeypatch, tmp_path / "script.py", "import os\n", typed=DOUBLE)
    for message in refusals(main.double, start_method="spawn"):
        assert "double was typed into a shell or notebook" in message
        assert NO_REASON not in message


@pytest.mark.parametrize("options", [{"start_method": "forkserver"}, {"executor": "process-pool"}])
def test_script_of_standard_input_is_refused(monkeypatch, options):
    main_of_script(monkeypatch, "<stdin>", "")
    with pytest.raises(InvalidOperation, match=r"not forked import the script, and there is no file '<stdin>': save"):
        operations.doubles.using(**options).map([1])


def test_script_of_standard_input_is_found_by_check(monkeypatch):
    main_of_script(monkeypatch, "<stdin>", "")
    (message,) = (found for found in operations.doubles.using(start_method="spawn").check() if found.level >= ERROR)
    assert "there is no file '<stdin>'" in message.msg


def test_functions_at_the_top_of_a_script_are_accepted(monkeypatch, tmp_path):
    source = f"{DOUBLE}{GUARDED.replace('double', 'other')}"
    (tmp_path / "script.py").write_text(source)
    main = main_of_script(monkeypatch, tmp_path / "script.py", source)
    operation = main.double = pooled_operation(main.double, transaction=None, workers=1, progress=False)
    assert operation.using(start_method="spawn").map([1]).values == [2]
