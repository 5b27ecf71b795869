"""Reads and changes exceptions of foreign classes, past the methods of these classes.

A class of exceptions can freeze its instances, raise for every attribute, or raise in `__str__` and `__repr__`.
poolsave reads and changes an exception that it did not make only by these functions. So a broken class costs the object
that raised it, and nothing else.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, TypeGuard, TypeVar

E = TypeVar("E", bound=BaseException)

# The slots of BaseException itself: a frozen dataclass refuses `error.__cause__ = ...`, and a property can hide it.
_args: Any = BaseException.args
_attributes: Any = vars(BaseException)["__dict__"]
_cause: Any = vars(BaseException)["__cause__"]
_context: Any = vars(BaseException)["__context__"]
_suppress_context: Any = vars(BaseException)["__suppress_context__"]
_traceback: Any = vars(BaseException)["__traceback__"]
# Those of `type` itself: a metaclass can refuse them.
_name: Any = vars(type)["__name__"]
_qualname: Any = vars(type)["__qualname__"]


def text_of(error: object) -> str:
    """Give the text of any value, also if its `__str__` is broken."""
    try:
        return str.__str__(str(error))  # a plain str, also if `__str__` gives a subclass
    except KeyboardInterrupt:
        raise
    except BaseException as secondary:  # it must not hide the error that is being reported
        return f"<{class_name_of(secondary)} in its __str__>"


def repr_of(value: object) -> str:
    """Give the repr of any value, also if its `__repr__` is broken."""
    try:
        return str.__str__(repr(value))
    except KeyboardInterrupt:
        raise
    except BaseException as secondary:  # as above
        return f"<{class_name_of(value)} whose repr raised {class_name_of(secondary)}>"


def attribute_of(value: object, name: str) -> Any:
    """Give an attribute; None if it is missing or the class's `__getattr__` raises."""
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
    """Give the module of its class; empty if the class names none."""
    module = attribute_of(type(error), "__module__")
    return module if isinstance(module, str) else ""


def class_name_of(value: object) -> str:
    """Give the name of its class."""
    name: str = _name.__get__(type(value))
    return name


def class_path_of(error: BaseException) -> str:
    """Give the dotted path of its class."""
    module, name = module_of(error), _qualname.__get__(type(error))
    return f"{module}.{name}" if module else str(name)


def args_of(error: BaseException) -> tuple[Any, ...]:
    """Give its arguments."""
    args: tuple[Any, ...] = _args.__get__(error)
    return args


def set_args(error: BaseException, args: tuple[Any, ...]) -> None:
    """Set its arguments."""
    _args.__set__(error, args)


def attributes_of(error: BaseException) -> dict[str, Any]:
    """Give its own attributes, as a dictionary that may be changed."""
    attributes: dict[str, Any] = _attributes.__get__(error)
    return attributes


def cause_of(error: BaseException) -> BaseException | None:
    """Give the exception that it was raised from."""
    cause: BaseException | None = _cause.__get__(error)
    return cause


def context_of(error: BaseException) -> BaseException | None:
    """Give the exception that was being handled when it was raised."""
    context: BaseException | None = _context.__get__(error)
    return context


def suppresses_context(error: BaseException) -> bool:
    """Whether its traceback is shown without its context, as after `raise ... from`."""
    suppresses: bool = _suppress_context.__get__(error)
    return suppresses


def traceback_of(error: BaseException) -> TracebackType | None:
    """Give its traceback."""
    frames: TracebackType | None = _traceback.__get__(error)
    return frames


def set_cause(error: BaseException, cause: BaseException) -> None:
    """Set the exception that it was raised from."""
    _cause.__set__(error, cause)


def set_context(error: BaseException, context: BaseException) -> None:
    """Set the exception that was being handled when it was raised."""
    _context.__set__(error, context)


def add_note(error: BaseException, note: str) -> None:
    """Add a note, unless it is there. A class that uses `__notes__` for something else gets none."""
    notes = attribute_of(error, "__notes__")
    if notes is None:
        notes = []
    if type(notes) is list and note not in notes:
        _set(error, "__notes__", [*notes, note])


def attach_report(error: BaseException, report: Any) -> None:
    """Set `error.report`; where its class has something else under that name, `vars(error)["report"]`.

    Python prints the notes of a KeyboardInterrupt below its traceback. Nothing else would show the report there.
    """
    _set(error, "report", report)
    if is_a(error, KeyboardInterrupt):
        add_note(error, text_of(report))


def _set(error: BaseException, name: str, value: Any) -> None:
    try:
        object.__setattr__(error, name, value)
    except Exception:  # a property of that name
        object.__getattribute__(error, "__dict__")[name] = value
