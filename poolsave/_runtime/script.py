"""The caller's script, which worker processes that are not forked import before anything else."""

from __future__ import annotations

import ast
import os
import sys
import tokenize
from functools import lru_cache
from multiprocessing import process
from types import CodeType

PROMPTS = ("<stdin>", "<python-input", "<ipython-input", "<console>")
"""How the file names of code begin that was typed at a prompt of Python, IPython or `manage.py shell`."""


def is_typed(code: CodeType) -> bool:
    """Whether code was typed at a prompt, also after a script (`python -i`)."""
    return code.co_filename.startswith(PROMPTS)


def is_guarded(code: CodeType) -> bool:
    """Whether code stands below `if __name__ == "__main__":` in the script, which only the caller runs."""
    path = getattr(sys.modules["__main__"], "__file__", None)
    return path == code.co_filename and any(code.co_firstlineno in lines for lines in _guarded_lines(path))


@lru_cache(maxsize=1)
def _guarded_lines(path: str) -> list[range]:
    try:
        with tokenize.open(path) as file:
            statements = ast.parse(file.read()).body
    except (OSError, SyntaxError, ValueError):  # a script without a readable source
        return []
    return [
        range(statement.lineno, (statement.body[-1].end_lineno or 0) + 1)
        for statement in statements
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "__name__ == '__main__'"
    ]


def missing_script() -> str | None:
    """Give the path of the script if there is no such file: it is read from standard input, or has been removed."""
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    if path is None or getattr(main, "__spec__", None) is not None or getattr(sys, "frozen", False):
        return None
    # As multiprocessing finds it: the caller may have changed its folder.
    found = os.path.join(process.ORIGINAL_DIR or "", path)  # type: ignore[attr-defined]
    return None if os.path.exists(found) else str(path)
