"""The caller's script, which worker processes that are not forked import before anything else."""

from __future__ import annotations

import ast
import os
import sys
import tokenize
from functools import lru_cache
from multiprocessing import process
from types import CodeType, FrameType

PROMPTS = ("<stdin>", "<python-input", "<ipython-input", "<console>")
"""How the file names of code begin that was typed at a prompt of Python, IPython or `manage.py shell`."""

CONDITIONS = ast.If | ast.IfExp | ast.BoolOp | ast.Match | ast.While
"""What can keep a statement of a script from being run where the script is imported."""


def is_typed(code: CodeType) -> bool:
    """Whether code was typed at a prompt, also after a script (`python -i`)."""
    return code.co_filename.startswith(PROMPTS)


def is_guarded(code: CodeType) -> bool:
    """Whether code stands below `if __name__ == "__main__":` in the script, which only the caller runs."""
    path = code.co_filename
    is_script = path == getattr(sys.modules["__main__"], "__file__", None)
    return is_script and any(code.co_firstlineno in lines for lines in _guarded_lines(path))


def is_started_again_by_import() -> bool:
    """Whether this call comes from a top-level statement of the script that its import in a worker would run again.

    A condition on the call's line counts as a guard: there are others than that of the name.
    """
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals is vars(main) and frame.f_code.co_name == "<module>":
            statements = _statements(path) if path == frame.f_code.co_filename else []
            nodes = [node for statement in statements for node in ast.walk(statement) if isinstance(node, CONDITIONS)]
            return bool(statements) and not any(frame.f_lineno in _lines(node) for node in nodes)
        frame = frame.f_back
    return False


def _guarded_lines(path: str) -> list[range]:
    ifs = [statement for statement in _statements(path) if isinstance(statement, ast.If)]
    guards = [statement for statement in ifs if ast.unparse(statement.test) == "__name__ == '__main__'"]
    return [_lines(statement) for guard in guards for statement in guard.body]


def _lines(node: ast.stmt | ast.expr) -> range:
    decorators = [decorator.lineno for decorator in getattr(node, "decorator_list", ())]
    return range(min([node.lineno, *decorators]), (node.end_lineno or 0) + 1)


@lru_cache(maxsize=1)
def _statements(path: str) -> list[ast.stmt]:
    try:
        with tokenize.open(path) as file:
            return ast.parse(file.read()).body
    except (OSError, SyntaxError, ValueError):  # a script without a readable source
        return []


def missing_script() -> str | None:
    """Give the path of the script if there is no such file: it is read from standard input, or has been removed."""
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    if path is None or getattr(main, "__spec__", None) is not None or getattr(sys, "frozen", False):
        return None
    # As multiprocessing finds it: the caller may have changed its folder.
    found = os.path.join(process.ORIGINAL_DIR or "", path)  # type: ignore[attr-defined]
    return None if os.path.exists(found) else str(path)
