"""Context that goes along with the objects (option `carry`): captured in the caller, restored around the function.

Why no `contextvars.Context` per object: Django keeps cache clients in context variables, and each object would make
new ones.
"""

from __future__ import annotations

import contextvars
import importlib
import operator
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

from .._pickling.code import SCRIPT_MODULES
from .._pickling.values import from_wire
from .._runtime.foreign_exceptions import text_of
from ..errors import InvalidOperation, InvalidOption

States: TypeAlias = tuple[Any, ...]
"""The captured states, one per carrier."""


class Carrier(Protocol):
    """Carries context that is not in a `ContextVar` to the workers. Pass such objects by the option `carry`.

    If `restore` raises, the object that it was called for fails.

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
        """In the caller: return the present state as plain data, since it is pickled for other processes.

        It is called once when `map`, `starmap` or `stream` is called, and in a block for every `save` and `submit`.
        """
        ...

    def restore(self, state: Any) -> AbstractContextManager[object] | None:
        """In the worker: put a captured state in force, or return a context manager that does so.

        It is called for every try of every object, inside the object's transaction (with
        `transaction="chunk"`: its savepoint) and right before the function, and again for each `on_commit` callback of
        the object, after the transaction. A context manager is entered around the function or the callback. What it
        raises at its end counts as theirs. An exception that it suppresses is raised all the same.
        """
        ...


class Unset(Enum):
    """The state of a ContextVar without a value."""

    UNSET = "unset"


class Reference(NamedTuple):
    """Names a ContextVar, which cannot be pickled, by module and attribute."""

    module: str
    name: str

    def resolve(self) -> ContextVar[Any]:
        variable = getattr(importlib.import_module(self.module), self.name, None)
        if not isinstance(variable, ContextVar):
            raise InvalidOption("carry", variable, f"{self.module}.{self.name} is no ContextVar in the worker")
        return variable


def is_carrier(value: object) -> bool:
    """Whether the option `carry` takes the value."""
    methods = [getattr(value, name, None) for name in ("capture", "restore")]
    return isinstance(value, ContextVar) or all(callable(method) for method in methods)


class CapturedContext:
    """The carriers of a run and their states. In a block the states are None: each call brings its own."""

    def __init__(self, carriers: Sequence[Any], states: States | None = None) -> None:
        self._carriers = tuple(carriers)
        self._states = states

    def captured(self) -> CapturedContext:
        """In the caller: return a copy with the present states."""
        return CapturedContext(self._carriers, self.capture())

    def capture(self) -> States:
        """In the caller: return the present states."""
        return tuple(_state_of(carrier) for carrier in self._carriers)

    def pickle_states(self, states: States) -> bytes:
        """Pickle states for workers that do not share the caller's memory.

        Raises:
            InvalidOption: naming what captured something that cannot be pickled.
        """
        for carrier, state in zip(self._carriers, states, strict=True):
            _check_picklable(carrier, state, "what it captured cannot be pickled for workers", "capture plain data")
        return pickle.dumps(states, pickle.HIGHEST_PROTOCOL)

    def __reduce__(self) -> tuple[Any, ...]:
        carriers = [_reference(carrier) if isinstance(carrier, ContextVar) else carrier for carrier in self._carriers]
        for carrier in carriers:
            _check_picklable(
                carrier, carrier, "it cannot be pickled for workers", "define its class at the top of a module"
            )
        # As bytes: the worker sets Django up before it unpickles anything of the user's.
        states = None if self._states is None else self.pickle_states(self._states)
        return PickledContext, (pickle.dumps(carriers, pickle.HIGHEST_PROTOCOL), states)

    def restored(self) -> CapturedContext:
        """In a worker that shares the caller's memory, or was forked: nothing to unpickle."""
        return self

    def wrap(self, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """In the worker: return a call that restores the states around each call."""
        if self._states is not None:
            return partial(with_states, self._carriers, self._states, call)
        return partial(_with_states_of_item, self._carriers, call)


class PickledContext(NamedTuple):
    """A `CapturedContext` as bytes, for another process."""

    carriers: bytes
    states: bytes | None

    def restored(self) -> CapturedContext:
        """In the worker: unpickle the carriers and states."""
        loaded = pickle.loads(self.carriers)
        carriers = [carrier.resolve() if isinstance(carrier, Reference) else carrier for carrier in loaded]
        return CapturedContext(carriers, None if self.states is None else pickle.loads(self.states))


def _state_of(carrier: Any) -> Any:
    return carrier.get(Unset.UNSET) if isinstance(carrier, ContextVar) else carrier.capture()


def _check_picklable(carrier: Any, value: Any, problem: str, fix: str) -> None:
    try:
        pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # whatever the value's own pickling raises
        raise InvalidOption(
            "carry", carrier, f"{problem} that do not share the caller's memory ({text_of(error)}): {fix}"
        ) from error


def _reference(variable: ContextVar[Any]) -> Reference:
    """Raises InvalidOption if there is no module where a worker would find it."""
    matches = [
        (*_unfitness(name, module), name, attribute)
        for name, module in list(sys.modules.items())
        if issubclass(type(module), ModuleType)
        # object.__getattribute__ keeps a lazy module from loading itself.
        for attribute, value in list(object.__getattribute__(module, "__dict__").items())
        if value is variable
    ]
    if not matches:
        raise InvalidOption(
            "carry",
            variable,
            "workers that are not forked find a ContextVar by its name in a module, and it is in none: "
            f"define {variable.name!r} at the top of a module",
        )
    return Reference(*min(matches)[-2:])


def _unfitness(name: str, module: ModuleType) -> tuple[bool, bool, bool]:
    """Reasons why a worker may not find the variable in this module, the strongest first.

    A script may import it under its guard. An alias may not be importable. A module that only imports the variable may
    do so inside a function; the module that defines it uses `ContextVar`.
    """
    namespace = object.__getattribute__(module, "__dict__")
    is_alias = getattr(namespace.get("__spec__"), "name", name) != name
    defines = any(value is ContextVar or value is contextvars for value in list(namespace.values()))
    return name in SCRIPT_MODULES, is_alias, not defines


def _with_states_of_item(carriers: Sequence[Any], call: Callable[[Any], Any], item: Any) -> Any:
    item = from_wire(item)
    states = item.states
    return call(item) if states is None else with_states(carriers, states, call, item)


def with_states(carriers: Sequence[Any], states: States, call: Callable[[Any], Any], item: Any) -> Any:
    leftover = {
        variable
        for variable, state in zip(carriers, states, strict=True)
        if state is Unset.UNSET and variable.get(state) is not state
    }
    if leftover:  # a value that a fork inherited, or that another object left
        return _without(leftover).run(_call_restored, carriers, states, call, item)
    return _call_restored(carriers, states, call, item)


def _without(variables: set[ContextVar[Any]]) -> Context:
    """A copy of the present context without some variables: in the present one they cannot be unset."""
    bare = Context()
    for variable, value in copy_context().items():
        if variable not in variables:
            bare.run(variable.set, value)
    return bare


def _call_restored(carriers: Sequence[Any], states: States, call: Callable[[Any], Any], item: Any) -> Any:
    failure: BaseException | None = None
    stack: ExitStack[bool] = ExitStack()
    with stack:
        try:
            for carrier, state in zip(carriers, states, strict=True):
                _restore(carrier, state, stack)
            before = {alias: len(entries) for alias, entries in _callbacks()}
            value = call(item)
            _wrap_callbacks(carriers, states, before)
            return value
        except BaseException as error:
            failure = error
            raise
    # A context manager of the user's suppressed it. A failed object must not count as saved.
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
    """The `on_commit` callbacks of open transactions, by alias."""
    if not settings.configured:
        return []
    return [(connection.alias, connection.run_on_commit) for connection in connections.all(initialized_only=True)]


def _wrap_callbacks(carriers: Sequence[Any], states: States, before: dict[str, int]) -> None:
    """Let the callbacks that the object has registered run with its states, too."""
    for alias, entries in _callbacks():
        for index in range(before.get(alias, 0), len(entries)):
            savepoints, callback, *robust = entries[index]
            restored = partial(with_states, carriers, states, operator.call, callback)
            entries[index] = (savepoints, restored, *robust)
