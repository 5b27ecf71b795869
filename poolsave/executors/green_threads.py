"""Processes that gevent or eventlet have patched, where threads are greenlets of one event loop.

A fork copies all greenlets and the loop with its descriptors: whatever runs beside the caller goes on in each worker as
well, and the loop of either side aborts over what the other one closes. A process that is started afresh has neither.
"""

from __future__ import annotations

import sys
from typing import Any

from ..errors import InvalidOption

PATCHED = ("threading", "thread", "select", "socket", "os")
"""Modules of the standard library, one of which is enough."""


def patched_by() -> str | None:
    """The library that has patched this process, if one has. It is not imported for that."""
    gevent: Any = sys.modules.get("gevent.monkey")
    if gevent is not None and any(map(gevent.is_module_patched, PATCHED)):
        return "gevent"
    eventlet: Any = sys.modules.get("eventlet.patcher")
    if eventlet is not None and any(map(eventlet.is_monkey_patched, PATCHED)):
        return "eventlet"
    return None


def check_start_method(wish: str | None) -> None:
    """Refuse to fork beside greenlets.

    Raises:
        InvalidOption: naming the library and the ways out.
    """
    library = patched_by() if wish in ("fork", "forkserver") else None
    if library is not None:
        raise InvalidOption(
            "start_method",
            wish,
            f"{library} has patched this process, and its greenlets would go on in every fork: "
            'use start_method="spawn" (the default here), or executor="thread"',
        )
