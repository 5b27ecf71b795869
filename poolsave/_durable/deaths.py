"""What the ledger's answer means for objects whose worker has died, or whose COMMIT had no answer. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._runtime.foreign_exceptions import is_a
from .._worker.replies import ObjectDetail
from ..errors import ValueLost
from ..executors import Died
from ..executors.marks import COMMITTING, RUNNING
from ..outcomes import Status
from .bookkeeping import CallbacksLost
from .recorder import HAS_CALLBACKS, ChunkTaken


def is_unsettled(detail: ObjectDetail) -> bool:
    """Whether the ledger is to say what became of an object."""
    return (detail.status is Status.LOST and detail.note > 0) or is_a(detail.error, ChunkTaken)


def as_saved(detail: ObjectDetail, index: int) -> ObjectDetail:
    """Give the detail of an object whose COMMIT has turned out to have happened."""
    error: BaseException | None = None
    if detail.note & HAS_CALLBACKS:
        error = callbacks_lost(index, detail.error)
    elif is_a(detail.error, ChunkTaken):
        error = ValueLost(index)
    return detail._replace(status=Status.SUCCEEDED, error=error, traceback=None, note=0)


def as_gone(detail: ObjectDetail, error: BaseException) -> ObjectDetail:
    """Give the detail of an object whose row another delivery has found gone."""
    return detail._replace(status=Status.SKIPPED, error=error, traceback=None, note=0)


def callbacks_lost(index: int, cause: Any) -> ValueLost:
    """Give the error of an object that is saved, and whose callbacks may not have run."""
    error = CallbacksLost(index)
    error.__cause__ = cause if isinstance(cause, BaseException) else None
    return error


def blamed_object(event: Died, left: Sequence[int]) -> int | None:
    """Give the offset of the object that the worker was at: the last one that had begun."""
    begun = [offset for offset in left if event.marks[offset] in (RUNNING, COMMITTING)]
    return begun[-1] if begun else None
