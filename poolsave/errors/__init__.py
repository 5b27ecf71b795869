"""Everything that poolsave raises, built from data so that no handler has to parse a text."""

from __future__ import annotations

from .._runtime.foreign_exceptions import text_of
from ._base import PoolsaveError
from ._of_durable_runs import (
    InputChanged,
    InvalidParameters,
    LeaseLost,
    RunBusy,
    RunConflict,
    RunUnfinished,
    StatusConflict,
    UnknownBackfill,
    UnknownCause,
    UnknownRun,
)
from ._of_objects import OperationsFailed, RemoteError, RowGone, TimedOut, ValueLost, WorkerDied, WorkerTraceback
from ._of_runs import (
    ClusterUnusable,
    DatabaseUnreachable,
    InsideTransaction,
    InvalidOperation,
    InvalidOption,
    SharedMemoryDatabase,
)

__all__ = [
    "ClusterUnusable",
    "DatabaseUnreachable",
    "InputChanged",
    "InsideTransaction",
    "InvalidOperation",
    "InvalidOption",
    "InvalidParameters",
    "LeaseLost",
    "OperationsFailed",
    "PoolsaveError",
    "RemoteError",
    "RowGone",
    "RunBusy",
    "RunConflict",
    "RunUnfinished",
    "SharedMemoryDatabase",
    "StatusConflict",
    "TimedOut",
    "UnknownBackfill",
    "UnknownCause",
    "UnknownRun",
    "ValueLost",
    "WorkerDied",
    "WorkerTraceback",
    "text_of",
]

for _name in __all__:
    # Tracebacks, pickles and the ledger name a class by its module: only this one is a promise.
    if isinstance(globals()[_name], type):
        globals()[_name].__module__ = __name__
