"""Exceptions of other people's classes: read, and written on, past whatever these classes make of it.

A class of exceptions can freeze its instances, answer every attribute with an error, or raise in `__str__` and
`__repr__`. An exception that poolsave did not make itself is looked into, or changed, only by what is here, so that it
costs its own object and nothing else.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, TypeGuard, TypeVar

E = TypeVar("E", bound=BaseException)

# The slots of BaseException itself: a frozen dataclass refuses `error.__cause__ = ...`, and a property can hide it.
_args: Any = BaseException.args
_cause: Any = vars(BaseException)["__cause__"]
_context: Any = vars(BaseException)["__context__"]
_traceback: Any = vars(BaseException)["__traceback__"]


def text_of(error: object) -> str:
    """The text of an exception, or of anything else, also of what has a broken __str__."""
    try:
        return str.__str__(str(error))  # a plain string, also if its __str__ gives one of a class of its own
    except KeyboardInterrupt:
        raise
    except BaseException as secondary:  # that must not hide the error that is being told
        return f"<{type(secondary).__name__} in its __str__>"


def repr_of(value: object) -> str:
    """The repr of anything, also of what has a broken one."""
    try:
        return str.__str__(repr(value))
    except KeyboardInterrupt:
        raise
    except BaseException as secondary:  # as above
        return f"<{type(value).__name__} whose repr raised {type(secondary).__name__}>"


def attribute_of(value: object, name: str) -> Any:
    """An attribute, or None if there is none, whatever the `__getattr__` of the class raises."""
    try:
        return getattr(value, name, None)
    except KeyboardInterrupt:
        raise
    except BaseException:  # endless recursion is usual
        return None


def is_a(error: object, kind: type[E]) -> TypeGuard[E]:
    """Whether it is an exception of that class. isinstance() also asks its `__class__`, which may lie or raise."""
    return issubclass(type(error), kind)


def module_of(error: BaseException) -> str:
    """The module of its class; empty where that is none."""
    found = attribute_of(type(error), "__module__")
    return found if isinstance(found, str) else ""


def class_path_of(error: BaseException) -> str:
    """The dotted path of its class."""
    module = module_of(error)
    return f"{module}.{type(error).__qualname__}" if module else type(error).__qualname__


def args_of(error: BaseException) -> tuple[Any, ...]:
    """What it was made of."""
    found: tuple[Any, ...] = _args.__get__(error)
    return found


def cause_of(error: BaseException) -> BaseException | None:
    """What it was raised from."""
    found: BaseException | None = _cause.__get__(error)
    return found


def context_of(error: BaseException) -> BaseException | None:
    """While which one was handled it was raised."""
    found: BaseException | None = _context.__get__(error)
    return found


def traceback_of(error: BaseException) -> TracebackType | None:
    """The frames that it came through."""
    found: TracebackType | None = _traceback.__get__(error)
    return found


def set_cause(error: BaseException, cause: BaseException) -> None:
    """Let it be raised from another one."""
    _cause.__set__(error, cause)


def set_context(error: BaseException, context: BaseException) -> None:
    """Let it be raised while another one was handled."""
    _context.__set__(error, context)


def add_note(error: BaseException, note: str) -> None:
    """Add a note, unless it is there. What keeps something else under that name goes without."""
    notes = attribute_of(error, "__notes__")
    if notes is None:
        notes = []
    if type(notes) is list and note not in notes:
        _set(error, "__notes__", [*notes, note])


def attach_report(error: BaseException, report: Any) -> None:
    """Set `error.report`; where its class has something else under that name, `vars(error)["report"]`."""
    _set(error, "report", report)


def _set(error: BaseException, name: str, value: Any) -> None:
    try:
        object.__setattr__(error, name, value)
    except Exception:  # a property of that name
        object.__getattribute__(error, "__dict__")[name] = value
