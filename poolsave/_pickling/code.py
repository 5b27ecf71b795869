"""Checks that a worker has the caller's code of a function. A function is pickled by its name only."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from types import CodeType, MethodType
from typing import Any, NamedTuple

from ..errors import InvalidOperation

SCRIPT_MODULES = ("__main__", "__mp_main__")
"""Module names of the script; multiprocessing adds the second one. Its guarded part runs in the caller alone."""
MAX_KNOWN = 512
"""The most functions whose versions are cached."""
MAX_LAYERS = 20
"""The most wrappers that are followed: an object that answers every attribute has no innermost function."""


class CodeVersion(NamedTuple):
    """Identifies the code of a function in one process, without the functions that it calls."""

    made_by: bytes
    """The Python version and the loader of the module. If these differ, equal source may give different code."""
    digest: bytes

    @classmethod
    def of(cls, function: Any) -> CodeVersion:
        """Give the version in this process. Takes half a microsecond for a cached function."""
        while isinstance(function, MethodType | partial):  # these may be created for every call
            function = function.__func__ if isinstance(function, MethodType) else function.func
        code = getattr(getattr(function, "func", function), "__code__", None)
        known = _known.get(id(function))
        if known is not None and known[0]() is function and known[1] is code:
            return known[2]
        made_by = f"{sys.version} {_loader(getattr(function, '__module__', None))}"
        version = cls(_digest(made_by), b"".join(_digest(repr(_described(code))) for code in _codes(function)))
        if len(_known) >= MAX_KNOWN:
            _known.clear()
        with suppress(TypeError):  # a callable without weak references
            _known[id(function)] = weakref.ref(function), code, version
        return version

    def check(self, function: Any) -> None:
        """Refuse, in the worker, to run other code than the caller's.

        Raises:
            InvalidOperation: naming the function.
        """
        here = CodeVersion.of(function)
        if here.made_by == self.made_by and here.digest != self.digest:
            name = getattr(function, "__qualname__", None) or repr(function)
            raise InvalidOperation(
                f"{name} of the module {function.__module__!r} is other code in the worker than in the caller, since "
                "its file was changed between the imports: reload the module in the caller (importlib.reload), and "
                "restart workers that are older, such as those of a pool of yours or of Dask"
            )


_known: dict[int, tuple[weakref.ref[Any], Any, CodeVersion]] = {}
"""By the id of a function: a reference to it, its code, which can be replaced, and its version."""


def _codes(function: Any) -> Iterator[CodeType]:
    for _ in range(MAX_LAYERS):
        code = getattr(function, "__code__", None)
        if isinstance(code, CodeType):
            yield code
        function = getattr(function, "__wrapped__", None) or getattr(function, "func", None)
        if function is None:
            return


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()


def _described(value: Any) -> Any:
    """Convert a constant to something whose repr is the same in all processes."""
    if isinstance(value, CodeType):
        names = value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars
        counts = value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags
        return value.co_code, names, counts, [*map(_described, value.co_consts)]
    if isinstance(value, tuple):
        return [*map(_described, value)]
    if isinstance(value, frozenset):
        return sorted(repr(_described(member)) for member in value)
    return type(value).__name__, repr(value)


def _loader(module: str | None) -> str:
    if module is None or module in SCRIPT_MODULES:  # multiprocessing loads the script by a different loader
        return ""
    spec = getattr(sys.modules.get(module), "__spec__", None)
    return type(getattr(spec, "loader", None)).__qualname__
