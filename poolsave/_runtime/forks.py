"""Detects children that the user's code forks, and ends them where that code ends.

An object's function may fork children, and so may the caller while a run is open. Such a child has copies of everything
that the run uses. It must not answer for an object, end a transaction on the shared connection, read a pipe, or end a
worker.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

flag: list[bool] = []
"""A list that is empty in this process, and not empty in any child that is forked later: a child fills its copy, and
starts a new one of its own. Keep the list itself.

Testing it takes a twentieth of the time of os.getpid(), so that it can be done after every object.
"""


def _raise_flag() -> None:
    global flag  # noqa: PLW0603  there is one per process
    flag.append(True)
    flag = []


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_raise_flag)


def end_child(error: BaseException | None = None) -> NoReturn:
    """End a forked child at the end of the user's code, as multiprocessing ends its children.

    None of the parent's further code runs in it: no other object, no `finally`, no exit handler.
    """
    status = 1
    try:
        status = _exit_status(error)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # closed, or there is none
                stream.flush()
        os._exit(status)


def _exit_status(error: BaseException | None) -> int:
    if error is None:
        return 0
    code = error.code if isinstance(error, SystemExit) else 1
    if code is None or isinstance(code, int):
        if not isinstance(error, SystemExit):
            sys.excepthook(type(error), error, error.__traceback__)
        return code or 0
    print(code, file=sys.stderr)  # noqa: T201  as Python does
    return 1


def ending_children(call: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wrap a call of the user's code so that children that it forks end inside of it."""
    forked = flag

    def guarded(item: Any) -> Any:
        try:
            value = call(item)
        except BaseException as error:
            if forked:
                end_child(error)
            raise
        if forked:
            end_child()
        return value

    return guarded
