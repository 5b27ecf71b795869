"""Composes the call of one object from the user's function and what the run puts around it.

Each layer takes the object as it came with the chunk. From the inside out:

    function -> end of forked children -> row or bytes in -> bytes out -> context -> time-out

The transaction is around all of it (`modes/transaction_modes.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .._pickling.values import from_wire, to_wire
from .._runtime.forks import ending_children
from .deadline import NoDeadline

if TYPE_CHECKING:
    from .context import CapturedContext
    from .job import WorkerJob
    from .rows import RowLoader


def build_call(  # noqa: PLR0913  one for each layer
    job: WorkerJob,
    function: Callable[[Any], Any],
    rows: RowLoader | None,
    context: CapturedContext | None,
    deadline: NoDeadline,
    *,
    unpickles: bool,
    pickles: bool,
) -> Callable[[Any], Any]:
    """Compose the call. `unpickles`: objects come from another process; `pickles`: values go to one."""
    call = ending_children(function)
    if rows is not None:
        call = partial(_with_loaded, call, rows.get)
    elif unpickles:
        call = partial(_with_loaded, call, from_wire)
    if pickles:
        call = partial(_to_wire, call)
    if context is not None:
        call = context.wrap(call)
    if job.timeout is not None:
        call = partial(_in_time, call, deadline)
    return call


def _with_loaded(call: Callable[[Any], Any], load: Callable[[Any], Any], item: Any) -> Any:
    return call(load(item))


def _to_wire(call: Callable[[Any], Any], item: Any) -> Any:
    # Inside the transaction: a value that cannot be pickled is a failure that is rolled back.
    return to_wire(call(item))


def _in_time(call: Callable[[Any], Any], deadline: NoDeadline, item: Any) -> Any:
    with deadline.function():
        return call(item)
