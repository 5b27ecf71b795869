"""What an operation needs to know of a function: its name, where it is found, its arguments and its kind."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidOperation


def name_of(func: Any) -> str:
    """Give the name for messages."""
    name: str = getattr(func, "__qualname__", None) or repr(func)
    return name


def find(module: str, qualname: str) -> Any:
    """Give what a module has under a qualified name, or None."""
    value: Any = sys.modules.get(module)
    for name in qualname.split("."):
        value = getattr(value, name, None)
    return value


def refuse_arguments(func: Any, owner: tuple[Any, ...], constants: Mapping[str, Any]) -> None:
    """Refuse keyword arguments that a function does not take.

    Raises:
        InvalidOperation: naming them.
    """
    try:
        inspect.signature(func).bind_partial(*owner, **constants)
    except TypeError as error:
        raise InvalidOperation(f"{name_of(func)} cannot be called with {sorted(constants)}: {error}") from error


def takes(func: Any, keyword: str) -> bool:
    """Whether a function takes a keyword argument besides the object, which is its first one."""
    parameters = list(inspect.signature(func).parameters.values())
    if parameters and parameters[0].kind in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        del parameters[0]
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD or (parameter.name == keyword and parameter.kind in kinds)
        for parameter in parameters
    )


def refuse_unsuitable_function(func: Any, *, expands: bool) -> None:
    """Refuse what a pool cannot run.

    Raises:
        InvalidOperation: saying what to do.
    """
    if not callable(func):
        raise InvalidOperation(f"{func!r} is not a function: decorate a function that takes one object")
    name, called = name_of(func), (func, type(func).__call__)
    generates = any(map(inspect.isgeneratorfunction, called)) and not expands
    if generates or any(map(inspect.isasyncgenfunction, called)):
        raise InvalidOperation(
            f"{name} is a generator function, which does nothing when it is called: return a list, or declare it by "
            "@pooled_operation(expand=True), by which each of its values goes on by itself in a pipeline"
        )
    if any(map(inspect.iscoroutinefunction, called)):
        raise InvalidOperation(
            f"{name} is an async function, which no worker would await: wrap it in asgiref.sync.async_to_sync"
        )
