"""Detects processes that gevent or eventlet have patched, where threads are greenlets of one event loop.

A fork copies all greenlets and the loop with its descriptors. The copied greenlets go on running in each worker, and
the loop of either side aborts when the other one closes a descriptor. A spawned process has neither.
"""

from __future__ import annotations

import sys
from typing import Any

from ..errors import InvalidOption

PATCHED = ("threading", "thread", "select", "socket", "os")
"""Modules of the standard library. A process counts as patched if one of them is."""


def patched_by() -> str | None:
    """The name of the library that has patched this process, or None. It imports neither library."""
    gevent: Any = sys.modules.get("gevent.monkey")
    if gevent is not None and any(map(gevent.is_module_patched, PATCHED)):
        return "gevent"
    eventlet: Any = sys.modules.get("eventlet.patcher")
    if eventlet is not None and any(map(eventlet.is_monkey_patched, PATCHED)):
        return "eventlet"
    return None


def check_start_method(start_method: str | None) -> None:
    """Refuse to fork beside greenlets.

    Raises:
        InvalidOption: naming the library and the alternatives.
    """
    library = patched_by() if start_method in ("fork", "forkserver") else None
    if library is not None:
        raise InvalidOption(
            "start_method",
            start_method,
            f"{library} has patched this process, and its greenlets would go on in every fork: "
            'use start_method="spawn" (the default here), or executor="thread"',
        )
