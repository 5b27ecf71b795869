"""Pickles an exception so that one of its own class is restored, also where pickle alone cannot do that.

Pickle calls the class with `args`. An `__init__` that wants other arguments fails then, or gives other `args`. Such an
exception is taken apart, and made again without its `__init__`: by the `__new__` of its built-in base class, with its
`args`, attributes and slots. What of these cannot be pickled is left out, and named in a note.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from types import BuiltinFunctionType, MemberDescriptorType, MethodDescriptorType
from typing import Any, NamedTuple

from .._db.error_codes import sqlstate_of
from .._runtime.foreign_exceptions import (
    add_note,
    args_of,
    attributes_of,
    class_path_of,
    is_a,
    repr_of,
    set_args,
    text_of,
)
from ..errors import RemoteError
from .plain import IMMUTABLE_TYPES

LEFT_OUT = "poolsave: cannot be sent from the worker, and is missing here: "
NO_ATTRIBUTES = (BaseException, BaseExceptionGroup)
"""Classes whose slots are restored in another way, or not at all, as the traceback."""


def pickle_exception(error: BaseException) -> bytes | None:
    """Pickle an exception; None if its class cannot be found by its name. Raises nothing but KeyboardInterrupt."""
    return _Graph().pickle(error)


class _State(NamedTuple):
    args: tuple[Any, ...]
    attributes: dict[str, Any]
    slots: dict[str, Any]
    left_out: list[str]


class _Graph:
    """An exception with all others that it refers to. For each it is decided once how it is pickled."""

    def __init__(self) -> None:
        self._reductions: dict[int, tuple[BaseException, Any]] = {}
        """By id. The exception is kept, so that no other gets its id. None: it is being taken apart."""

    def pickle(self, error: BaseException) -> bytes | None:
        """Pickle the exception by its own reduction, else in parts; None if neither can be restored."""
        data = self._try(error, _own_reduction, _is_equal)
        return self._try(error, self._parts, _has_same_class) if data is None else data

    def _try(
        self,
        error: BaseException,
        reduce: Callable[[BaseException], Any],
        is_good: Callable[[Any, BaseException], bool],
    ) -> bytes | None:
        self._reductions[id(error)] = error, None
        try:
            self._reductions[id(error)] = error, reduce(error)
            data = self._dumps(error)
            return data if is_good(pickle.loads(data), error) else None
        except KeyboardInterrupt:
            raise
        except BaseException:  # whatever the exception's own methods raise
            return None

    def _dumps(self, value: Any) -> bytes:
        buffer = io.BytesIO()
        _Pickler(buffer, self).dump(value)
        return buffer.getvalue()

    def reduction_of(self, error: BaseException) -> Any:
        """Give what `__reduce_ex__` gives for others. Where nothing restores the class, it is that of a RemoteError."""
        if id(error) not in self._reductions and self.pickle(error) is None:
            arguments = repr_of(args_of(error))
            stand_in = RemoteError, (class_path_of(error), text_of(error), arguments, sqlstate_of(error))
            self._reductions[id(error)] = error, stand_in
        reduction = self._reductions[id(error)][1]
        if reduction is None:
            raise pickle.PicklingError("the exception refers to itself")
        return reduction

    def _parts(self, error: BaseException) -> Any:
        left_out: list[str] = []
        args = tuple(self._argument(number, arg, left_out) for number, arg in enumerate(args_of(error)))
        attributes = self._crossing(attributes_of(error), left_out)
        slots = self._crossing(_slots_of(error), left_out)
        created = _create, (type(error), _group_arguments(error) or args)
        return *created, _State(args, attributes, slots, left_out), None, None, _fill

    def _argument(self, number: int, value: Any, left_out: list[str]) -> Any:
        if self._crosses(value):
            return value
        left_out.append(f"args[{number}] (its repr is there)")
        return repr_of(value)

    def _crossing(self, values: dict[str, Any], left_out: list[str]) -> dict[str, Any]:
        crossing = {name: value for name, value in values.items() if self._crosses(value)}
        left_out += [name for name in values if name not in crossing]
        return crossing

    def _crosses(self, value: Any) -> bool:
        if type(value) in IMMUTABLE_TYPES:
            return True
        try:
            pickle.loads(self._dumps(value))
        except KeyboardInterrupt:
            raise
        except BaseException:  # whatever the value's own pickling raises
            return False
        return True


class _Pickler(pickle.Pickler):
    """Leaves aside what is registered with `copyreg`: tblib, which Dask installs, loses the code of a SystemExit."""

    def __init__(self, file: io.BytesIO, graph: _Graph) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._graph = graph

    def reducer_override(self, value: Any) -> Any:
        return self._graph.reduction_of(value) if is_a(value, BaseException) else NotImplemented


def _own_reduction(error: BaseException) -> Any:
    return error.__reduce_ex__(pickle.HIGHEST_PROTOCOL)


def _is_equal(copy: Any, error: BaseException) -> bool:
    """Whether the copy has all that the error has. Called with other arguments, `__init__` may give other `args`."""
    if not _has_same_class(copy, error) or _has_slots(_class_of(error)):
        return False
    return _reduces_itself(_class_of(error)) or repr_of(args_of(copy)) == repr_of(args_of(error))


def _has_same_class(copy: Any, error: BaseException) -> bool:
    return type(copy) is type(error)


def _class_of(error: BaseException) -> Any:  # Any: mypy takes the class of something unhashable for unhashable
    return type(error)


@lru_cache
def _reduces_itself(kind: type) -> bool:
    """Whether a method in Python says how to pickle it, which knows better."""
    methods = [vars(base).get(name) for base in kind.__mro__[:-1] for name in ("__reduce__", "__reduce_ex__")]
    return any(method is not None and not isinstance(method, MethodDescriptorType) for method in methods)


@lru_cache
def _has_slots(kind: type) -> bool:
    """Whether attributes may stand in slots, of which the built-in reduction knows nothing."""
    return not _reduces_itself(kind) and any(vars(base).get("__slots__") for base in kind.__mro__)


def _slots_of(error: BaseException) -> dict[str, Any]:
    """Give what stands in slots, also in those of built-in classes, such as `errno`, where None is for an empty one."""
    values: dict[str, Any] = {}
    for kind in type(error).__mro__:
        for name, slot in vars(kind).items():
            if isinstance(slot, MemberDescriptorType) and kind not in NO_ATTRIBUTES:
                with suppress(AttributeError):  # empty
                    value = slot.__get__(error)
                    if value is not None or "__slots__" in vars(kind):
                        values.setdefault(name, value)
    return values


def _group_arguments(error: BaseException) -> tuple[Any, ...]:
    """Give what a group is made of, which its `args` need not be; empty for other exceptions."""
    if not is_a(error, BaseExceptionGroup):
        return ()
    return tuple(vars(BaseExceptionGroup)[name].__get__(error) for name in ("message", "exceptions"))


def _create(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    base: Any = kind
    while not isinstance(vars(base).get("__new__"), BuiltinFunctionType):
        base = base.__base__
    error: BaseException = base.__new__(kind, *args)
    return error


def _fill(error: BaseException, state: _State) -> None:
    set_args(error, state.args)
    attributes_of(error).update(state.attributes)
    left_out = [*state.left_out]
    for name, value in state.slots.items():
        try:
            _slot(type(error), name).__set__(error, value)
        except (AttributeError, TypeError):  # read-only
            left_out.append(name)
    if left_out:
        add_note(error, LEFT_OUT + ", ".join(left_out))


def _slot(kind: type, name: str) -> Any:
    return next(slot for base in kind.__mro__ if isinstance(slot := vars(base).get(name), MemberDescriptorType))
