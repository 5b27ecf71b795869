"""Public names, signatures, options and statuses are those of `public_surface.txt`, and change only on purpose.

To write that file anew: `python -m tests.unit.test_public_surface`.
"""

import ast
import dataclasses
import difflib
import enum
import inspect
import textwrap
from functools import cached_property
from pathlib import Path

import poolsave
import poolsave.errors
import poolsave.executors
import poolsave.migrations
import poolsave.testing
import poolsave.throttles
from poolsave._db.write_behind.pacing import Batching
from poolsave._pipelines.report import PipelineReport, StageReport
from poolsave._reports.durable import DurableRun
from poolsave._reports.statistics import Resizing, SlowObject, Statistics, WorkerTimes
from poolsave._reports.throttling import Throttled
from poolsave._reports.trials import Trial
from poolsave._worker.current import Current
from poolsave.executors.event_queue import EventQueueExecutor
from poolsave.operations import ExpandingOperation

LIST = Path(__file__).with_name("public_surface.txt")
MODULES = [poolsave, poolsave.executors, poolsave.migrations, poolsave.testing, poolsave.throttles, poolsave.errors]
GIVEN = [
    Batching,
    Current,
    DurableRun,
    ExpandingOperation,
    PipelineReport,
    Resizing,
    SlowObject,
    StageReport,
    Statistics,
    Throttled,
    Trial,
    WorkerTimes,
]
"""Classes whose instances people get without importing them."""
PRIVATE = [EventQueueExecutor]
"""Bases that cannot be imported: what they define stands with each class that inherits it."""
OPERATORS = {"__bool__", "__call__", "__enter__", "__exit__", "__get__", "__iter__", "__len__", "__next__", "__or__"}
KINDS = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
PLAIN = (bool, int, float, str, tuple, type(None))


def test_the_public_surface_is_as_listed():
    listed, found = LIST.read_text().splitlines(), surface()
    difference = "\n".join(difflib.unified_diff(listed, found, "listed", "found", lineterm=""))
    assert not difference, f"if this is meant, run python -m tests.unit.test_public_surface:\n{difference}"


def surface():
    lines = []
    for module in MODULES:
        names = {name: getattr(module, name) for name in sorted(module.__all__)}
        lines += section(module.__name__, names, elsewhere=module is poolsave)
    return [*lines, *section("given by these", {kind.__name__: kind for kind in GIVEN}, elsewhere=False)]


def section(title, names, *, elsewhere):
    yield f"[{title}]"
    for name, value in names.items():
        if elsewhere and getattr(value, "__module__", "") == "poolsave.errors":
            yield f"{name} (of poolsave.errors)"
        elif inspect.isclass(value):
            yield from class_lines(name, value)
        else:
            yield value_line(name, value)
    yield ""


def class_lines(name, kind):
    """The class and what it defines itself; what it inherits from another public class stands there."""
    own = [base for base in kind.__mro__ if base.__module__.startswith("poolsave")]
    bases = [base.__name__ for base in own[1:] if base not in PRIVATE]
    yield f"class {name}({', '.join(bases)}){constructor(kind)}"
    if issubclass(kind, enum.Enum):
        yield from (f"    {member.name} = {member.value!r}" for member in kind)
    elif dataclasses.is_dataclass(kind):
        yield from (f"    {field.name}: {field.type}{default_of(field)}" for field in dataclasses.fields(kind))
    members = dict.fromkeys(attributes_made_by(kind))
    for base in [*(own[1:2] if own[1:] and own[1] in PRIVATE else ()), kind]:
        members |= {n: value for n, value in vars(base).items() if is_public(n)}
    for member in sorted(members):
        line = member_line(member, members[member], kind)
        if line is not None:
            yield f"    {line}"


def is_public(name):
    return name in OPERATORS or not name.startswith("_")


def constructor(kind):
    if dataclasses.is_dataclass(kind) or issubclass(kind, enum.Enum):
        return ""
    if issubclass(kind, tuple):  # its annotations differ from one Python to the next
        return f": {', '.join(name + default(kind._field_defaults, name) for name in kind._fields)}"
    made_by = vars(kind).get("__init__")
    if made_by is None or getattr(kind, "_is_protocol", False):
        return ""
    return f": {signature(made_by, skip=1)}"


def default(defaults, name):
    return f" = {defaults[name]!r}" if name in defaults else ""


def default_of(field):
    if field.default_factory is not dataclasses.MISSING:
        return f" = {field.default_factory.__name__}()"
    return "" if field.default is dataclasses.MISSING else f" = {field.default!r}"


def attributes_made_by(kind):
    """Public attributes that its `__init__` sets."""
    made_by = vars(kind).get("__init__")
    if not inspect.isfunction(made_by) or dataclasses.is_dataclass(kind):
        return
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(made_by)))):
        match node:
            case ast.Attribute(ast.Name("self"), name, ast.Store()) if is_public(name):
                yield name


def member_line(name, value, kind):
    if isinstance(value, property | cached_property):
        getter = value.fget if isinstance(value, property) else value.func
        return f"property {name}{result_of(getter)}"
    if isinstance(value, classmethod | staticmethod):
        word = type(value).__name__
        return f"{word} {name}{signature(value.__func__, skip=isinstance(value, classmethod))}"
    if inspect.isfunction(value):
        return f"def {name}{signature(value, skip=1)}"
    if inspect.ismemberdescriptor(value) or issubclass(kind, enum.Enum | tuple):
        return None
    if dataclasses.is_dataclass(kind) and name in {field.name for field in dataclasses.fields(kind)}:
        return None
    return f"attribute {name}" + (f" = {value!r}" if isinstance(value, bool | int | str) else "")


def value_line(name, value):
    if inspect.isfunction(value):
        return f"def {name}{signature(value)}"
    return f"{name} = {value!r}" if isinstance(value, PLAIN) else f"{name}: {type_name(value)}"


def type_name(value):
    # How a union calls itself depends on the version of Python.
    return type(value).__name__ if type(value).__module__.startswith("poolsave") else "type alias"


def signature(function, *, skip=0):
    """As it is written, but for what the line breaks and quotes of one version of Python add."""
    words, before = [], None
    for parameter in [*inspect.signature(function).parameters.values()][skip:]:
        if before == parameter.POSITIONAL_ONLY != parameter.kind:
            words.append("/")
        if parameter.kind == parameter.KEYWORD_ONLY and before not in (
            parameter.KEYWORD_ONLY,
            parameter.VAR_POSITIONAL,
        ):
            words.append("*")
        words.append(KINDS.get(parameter.kind, "") + parameter.name + annotation(parameter) + preset(parameter))
        before = parameter.kind
    if before == inspect.Parameter.POSITIONAL_ONLY:
        words.append("/")
    return f"({', '.join(words)}){result_of(function)}"


def annotation(parameter):
    return f": {text_of(parameter.annotation)}" if parameter.annotation is not parameter.empty else ""


def preset(parameter):
    return f" = {parameter.default!r}" if parameter.default is not parameter.empty else ""


def result_of(function):
    given = inspect.signature(function).return_annotation
    return "" if given is inspect.Signature.empty else f" -> {text_of(given)}"


def text_of(note):
    return note if isinstance(note, str) else getattr(note, "__name__", repr(note))


if __name__ == "__main__":
    LIST.write_text("\n".join(surface()) + "\n")
