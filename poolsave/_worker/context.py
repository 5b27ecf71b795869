"""Context that goes along with the objects: captured in the caller, restored around the function.

It is restored around the call and not by a `contextvars.Context` of its own for every object: Django keeps cache
clients in context variables, and each object would make new ones.
"""

from __future__ import annotations

import contextvars
import importlib
import pickle
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from contextvars import Context, ContextVar, copy_context
from enum import Enum
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple, Protocol, TypeAlias

from django.conf import settings
from django.db import connections

from .._pickling.values import from_wire
from .._runtime.foreign_exceptions import text_of
from ..errors import InvalidOperation, InvalidOption

States: TypeAlias = tuple[Any, ...]
"""What was captured, one for each carrier."""


class Carrier(Protocol):
    """Takes context along that is not in a `ContextVar`; give such objects to the option `carry`.

    An exception that `restore` raises is the failure of the object that it was called for.

    Example:
        >>> import contextlib, os
        >>> class WorkingDirectory:
        ...     def capture(self):
        ...         return os.getcwd()
        ...     def restore(self, path):
        ...         return contextlib.chdir(path)
        >>> from poolsave import pooled_operation
        >>> @pooled_operation(executor="serial", transaction=None, carry=[WorkingDirectory()])
        ... def where(_item):
        ...     return os.getcwd()
        >>> where.map([1]).values == [os.getcwd()]
        True
    """

    def capture(self) -> Any:
        """In the caller: give what is in force now, as plain data, since it is pickled for other processes.

        It is called once when `map`, `starmap` or `stream` is called, and in a block for every `save` and `submit`.
        """
        ...

    def restore(self, state: Any) -> AbstractContextManager[object] | None:
        """In the worker: put a captured state in force, or give a context manager that does so.

        It is called for every object and every further try of it, inside the object's transaction (with
        `transaction="chunk"`: its savepoint) and right before the function, and again for each `on_commit` callback of
        the object, when there is no transaction any more. A context manager is entered around the function or the
        callback; what it raises at its end counts as theirs, and what it suppresses is raised all the same.
        """
        ...


class Unset(Enum):
    """The state of a ContextVar that has none."""

    UNSET = "unset"


class Reference(NamedTuple):
    """Where another process finds a ContextVar, which cannot be pickled."""

    module: str
    name: str

    def resolve(self) -> ContextVar[Any]:
        found = getattr(importlib.import_module(self.module), self.name, None)
        if not isinstance(found, ContextVar):
            raise InvalidOption("carry", found, f"{self.module}.{self.name} is no ContextVar in the worker")
        return found


def is_carrier(value: object) -> bool:
    """Whether the option `carry` takes it."""
    methods = [getattr(value, name, None) for name in ("capture", "restore")]
    return isinstance(value, ContextVar) or all(callable(method) for method in methods)


class CapturedContext:
    """What a run takes along: the carriers, and the states unless every call of a block brings its own."""

    def __init__(self, carriers: Sequence[Any], states: States | None = None) -> None:
        self._carriers = tuple(carriers)
        self._states = states

    def captured(self) -> CapturedContext:
        """In the caller: the same with the states of now."""
        return CapturedContext(self._carriers, self.capture())

    def capture(self) -> States:
        """In the caller: the states of now."""
        return tuple(one.get(Unset.UNSET) if isinstance(one, ContextVar) else one.capture() for one in self._carriers)

    def pack(self, states: States) -> bytes:
        """Pickle states for workers that do not share the caller's memory.

        Raises:
            InvalidOption: naming what captured something that cannot be pickled.
        """
        for carrier, state in zip(self._carriers, states, strict=True):
            _refuse_unpicklable(carrier, state, "what it captured cannot be pickled for workers", "capture plain data")
        return pickle.dumps(states, pickle.HIGHEST_PROTOCOL)

    def __reduce__(self) -> tuple[Any, ...]:
        references = [_reference(one) if isinstance(one, ContextVar) else one for one in self._carriers]
        for one in references:
            _refuse_unpicklable(one, one, "it cannot be pickled for workers", "define its class at the top of a module")
        # As bytes, since the worker brings Django up before anything of the user's is restored.
        states = None if self._states is None else self.pack(self._states)
        return PickledContext, (pickle.dumps(references, pickle.HIGHEST_PROTOCOL), states)

    def opened(self) -> CapturedContext:
        """In a worker that shares the caller's memory, or was forked."""
        return self

    def around(self, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """In the worker: the call with an object, with its states in force."""
        if self._states is not None:
            return partial(with_states, self._carriers, self._states, call)
        return partial(_with_own_states, self._carriers, call)


class PickledContext(NamedTuple):
    """The same on its way to another process."""

    references: bytes
    states: bytes | None

    def opened(self) -> CapturedContext:
        """In the worker: the carriers and states themselves."""
        found = pickle.loads(self.references)
        carriers = [one.resolve() if isinstance(one, Reference) else one for one in found]
        return CapturedContext(carriers, None if self.states is None else pickle.loads(self.states))


def _refuse_unpicklable(carrier: Any, value: Any, problem: str, fix: str) -> None:
    try:
        pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # whatever the value's own pickling raises
        raise InvalidOption(
            "carry", carrier, f"{problem} that do not share the caller's memory ({text_of(error)}): {fix}"
        ) from error


SCRIPT_MODULES = ("__main__", "__mp_main__")
"""The names of the script, whose guarded part runs in the caller alone. multiprocessing adds the second one."""


def _reference(variable: ContextVar[Any]) -> Reference:
    """Raises InvalidOption if there is no module where a worker would find it."""
    found = [
        (*_unlikeliness(name, module), name, attribute)
        for name, module in list(sys.modules.items())
        if issubclass(type(module), ModuleType)
        # Asked like this, a lazy module does not load itself.
        for attribute, value in list(object.__getattribute__(module, "__dict__").items())
        if value is variable
    ]
    if not found:
        raise InvalidOption(
            "carry",
            variable,
            "workers that are not forked find a ContextVar by its name in a module, and it is in none: "
            f"define {variable.name!r} at the top of a module",
        )
    return Reference(*min(found)[-2:])


def _unlikeliness(name: str, module: ModuleType) -> tuple[bool, bool, bool]:
    """What speaks against it that a worker finds in this module what the caller has there, the worst first: a script
    may import it under its guard, an alias may not be importable, and a module that imports it may do so in a
    function. The module that defines it knows how to make one."""
    known = object.__getattribute__(module, "__dict__")
    is_alias = getattr(known.get("__spec__"), "name", name) != name
    defines = any(value is ContextVar or value is contextvars for value in list(known.values()))
    return name in SCRIPT_MODULES, is_alias, not defines


def _with_own_states(carriers: Sequence[Any], call: Callable[[Any], Any], item: Any) -> Any:
    item = from_wire(item)
    states = item.states
    return call(item) if states is None else with_states(carriers, states, call, item)


def with_states(carriers: Sequence[Any], states: States, call: Callable[[Any], Any], item: Any) -> Any:
    leftover = {
        one for one, state in zip(carriers, states, strict=True) if state is Unset.UNSET and one.get(state) is not state
    }
    if leftover:  # inherited by a fork, or left by another object
        return _without(leftover).run(_restored, carriers, states, call, item)
    return _restored(carriers, states, call, item)


def _without(variables: set[ContextVar[Any]]) -> Context:
    """A copy of the present context in which some variables are unset, which cannot be done to the present one."""
    bare = Context()
    for variable, value in copy_context().items():
        if variable not in variables:
            bare.run(variable.set, value)
    return bare


def _restored(carriers: Sequence[Any], states: States, call: Callable[[Any], Any], item: Any) -> Any:
    failure: BaseException | None = None
    stack: ExitStack[bool] = ExitStack()
    with stack:
        try:
            for carrier, state in zip(carriers, states, strict=True):
                _restore(carrier, state, stack)
            before = {alias: len(entries) for alias, entries in _callbacks()}
            value = call(item)
            _take_callbacks_along(carriers, states, before)
            return value
        except BaseException as error:
            failure = error
            raise
    # A context manager of the user's suppressed it; nothing that failed may be called saved.
    assert failure is not None
    raise failure


def _restore(carrier: Any, state: Any, stack: ExitStack[bool]) -> None:
    if isinstance(carrier, ContextVar):
        if state is not Unset.UNSET:
            stack.callback(carrier.reset, carrier.set(state))
        return
    manager = carrier.restore(state)
    if manager is None:
        return
    if not hasattr(type(manager), "__enter__"):
        raise InvalidOperation(
            f"restore() of {carrier!r} gave {manager!r}: let it give a context manager (@contextmanager) or None"
        )
    stack.enter_context(manager)


def _callbacks() -> list[tuple[str, list[Any]]]:
    """The `on_commit` callbacks that wait for the end of an open transaction, by alias."""
    if not settings.configured:
        return []
    return [(one.alias, one.run_on_commit) for one in connections.all(initialized_only=True)]


def _take_callbacks_along(carriers: Sequence[Any], states: States, before: dict[str, int]) -> None:
    """Let those that the object has registered run with its states, too."""
    for alias, entries in _callbacks():
        for place in range(before.get(alias, 0), len(entries)):
            savepoints, callback, *robust = entries[place]
            restored = partial(with_states, carriers, states, _called, callback)
            entries[place] = (savepoints, restored, *robust)


def _called(callback: Callable[[], object]) -> object:
    return callback()
