"""Run any per-object Django function over a pool: safely, fast, and with every outcome known.

`bulk_create` and `bulk_update` skip `save()` and signals; a loop is slow; a bare process pool corrupts connections,
hides errors, eats memory and hangs. poolsave calls *your function* once per object in a pool of workers, each with a
database connection of its own and one transaction per object, and reports the outcome of every object.

    >>> from poolsave import pooled_operation, concurrent_saves
    >>> @pooled_operation(executor="serial", transaction=None)   # in real work: workers=4, and leave out the rest
    ... def shout(word):
    ...     return word.upper()
    >>> shout("an ordinary call")
    'AN ORDINARY CALL'
    >>> report = shout.map(["over", "the", "pool"])
    >>> report.values
    ['OVER', 'THE', 'POOL']
    >>> with concurrent_saves(executor="serial", transaction=None) as saves:
    ...     future = saves.submit(shout, "or as a block")
    >>> future.result()
    'OR AS A BLOCK'
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._reports.items import load_items
from ._worker.context import Carrier
from ._worker.current import current
from .durable import Run
from .errors import (
    ClusterUnusable,
    DatabaseUnreachable,
    InputChanged,
    InsideTransaction,
    InvalidOperation,
    InvalidOption,
    InvalidParameters,
    LeaseLost,
    OperationsFailed,
    PoolsaveError,
    RemoteError,
    RowGone,
    RunBusy,
    RunConflict,
    RunUnfinished,
    SharedMemoryDatabase,
    StatusConflict,
    TimedOut,
    UnknownBackfill,
    UnknownCause,
    UnknownRun,
    ValueLost,
    WorkerDied,
)
from .operations import PooledOperation, pooled_operation
from .options import Options
from .outcomes import DROP, Outcome, Status
from .pipelines import Pipeline
from .previews import Change, Preview
from .reports import Report
from .saves import Saves, concurrent_saves
from .streams import OutcomeStream

if TYPE_CHECKING:
    from .ledger.registry import backfill

__version__ = "0.2.0"
"""The only place of the version; the build reads it from here."""

__all__ = [
    "DROP",
    "Carrier",
    "Change",
    "ClusterUnusable",
    "DatabaseUnreachable",
    "InputChanged",
    "InsideTransaction",
    "InvalidOperation",
    "InvalidOption",
    "InvalidParameters",
    "LeaseLost",
    "OperationsFailed",
    "Options",
    "Outcome",
    "OutcomeStream",
    "Pipeline",
    "PooledOperation",
    "PoolsaveError",
    "Preview",
    "RemoteError",
    "Report",
    "RowGone",
    "Run",
    "RunBusy",
    "RunConflict",
    "RunUnfinished",
    "Saves",
    "SharedMemoryDatabase",
    "Status",
    "StatusConflict",
    "TimedOut",
    "UnknownBackfill",
    "UnknownCause",
    "UnknownRun",
    "ValueLost",
    "WorkerDied",
    "backfill",
    "concurrent_saves",
    "current",
    "load_items",
    "pooled_operation",
]


if not TYPE_CHECKING:  # type checkers would take it to have any name

    def __getattr__(name: str) -> Any:
        if name == "backfill":  # only programs that have durable runs need it
            from .ledger.registry import backfill

            return backfill
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
