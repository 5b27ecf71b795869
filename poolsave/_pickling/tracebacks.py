"""Tracebacks as text, as Python prints them, at a tenth of the cost for errors that many objects raise at one place.

Python looks at each frame's source again for each error. For a `save()` that takes longer than the `save()` itself.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from types import CodeType, TracebackType

from .._runtime.foreign_exceptions import (
    attribute_of,
    cause_of,
    class_path_of,
    context_of,
    suppresses_context,
    text_of,
    traceback_of,
)

HEADING = "Traceback (most recent call last):\n"
CAUSED = "\nThe above exception was the direct cause of the following exception:\n\n"
FOLLOWED = "\nDuring handling of the above exception, another exception occurred:\n\n"
MAX_STACKS = 100
"""Texts of stacks that are remembered."""
_MORE_THAN_A_LINE = (SyntaxError, NameError, AttributeError, ImportError, BaseExceptionGroup)
"""Python adds the source, what else may have been meant, or a tree."""

_stacks: dict[tuple[int, ...], tuple[list[CodeType], str]] = {}
"""By the ids of the code and the instructions of all frames. The code is kept, so that no other gets its id."""


def format_traceback(error: BaseException) -> str:
    """Give the traceback as text, from the first frame outside of poolsave."""
    frames = _users_part(traceback_of(error))
    try:
        chain = [*_chain_of(error, frames)]
        if all(_ends_in_one_line(link) for link, _stack, _then in chain):
            return "".join(_stack_text(stack) + _last_line(link) + then for link, stack, then in reversed(chain))
        return "".join(traceback.format_exception(type(error), error, frames))
    except KeyboardInterrupt:
        raise
    except BaseException:  # an exception whose own methods are broken is still an exception
        return "".join([HEADING, *traceback.format_tb(frames), f"{class_path_of(error)}: {text_of(error)}\n"])


def _users_part(frames: TracebackType | None) -> TracebackType | None:
    part = frames
    while part is not None and part.tb_frame.f_globals.get("__name__", "").partition(".")[0] == "poolsave":
        part = part.tb_next
    return part or frames


def _chain_of(
    error: BaseException, frames: TracebackType | None
) -> Iterator[tuple[BaseException, TracebackType | None, str]]:
    """Give the error and those before it, each with its frames and what Python says between it and the one after."""
    link, seen = error, {id(error)}
    yield error, frames, ""
    while True:
        before, then = cause_of(link), CAUSED
        if before is None or id(before) in seen:
            before, then = None if suppresses_context(link) else context_of(link), FOLLOWED
        if before is None or id(before) in seen:
            return
        link = before
        seen.add(id(link))
        yield link, traceback_of(link), then


def _ends_in_one_line(error: BaseException) -> bool:
    return not issubclass(type(error), _MORE_THAN_A_LINE) and attribute_of(error, "__notes__") is None


def _last_line(error: BaseException) -> str:
    path, text = class_path_of(error), text_of(error)
    for module in ("builtins.", "__main__."):
        path = path.removeprefix(module)
    return f"{path}: {text}\n" if text else f"{path}\n"


def _stack_text(frames: TracebackType | None) -> str:
    if frames is None:
        return ""
    codes, key = list[CodeType](), list[int]()
    for frame in _frames_of(frames):
        codes.append(frame.tb_frame.f_code)
        key += id(codes[-1]), frame.tb_lasti
    entry = _stacks.get(tuple(key))
    if entry is None:
        if len(_stacks) >= MAX_STACKS:
            _stacks.clear()
        entry = _stacks[tuple(key)] = codes, "".join([HEADING, *traceback.format_tb(frames)])
    return entry[1]


def _frames_of(frames: TracebackType | None) -> Iterator[TracebackType]:
    while frames is not None:
        yield frames
        frames = frames.tb_next
