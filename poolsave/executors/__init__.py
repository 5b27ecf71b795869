"""Where chunks run: the executor protocol, the registry of names, and poolsave's own executors.

An executor takes chunks and returns events. It knows nothing of Django, transactions or outcomes: the code that it runs
in its workers does. To plug one in, pass an instance as `executor=`, or register a factory by name:

    [project.entry-points."poolsave.executors"]
    mine = "my_package:MyExecutor"
"""

from .dask.executor import DaskExecutor
from .futures import FuturesExecutor, ProcessPoolExecutor, ThreadFuturesExecutor
from .processes.executor import ProcessExecutor
from .protocol import (
    EXECUTOR_METHODS,
    UNKNOWN,
    Broken,
    Died,
    Event,
    Executor,
    Job,
    Marks,
    NotAdded,
    Ready,
    Replied,
    Resizable,
    Retired,
    Session,
    SetupFailed,
    Task,
    is_resizable,
)
from .registry import create, is_known, register
from .serial import SerialExecutor
from .threads import ThreadExecutor

__all__ = [
    "EXECUTOR_METHODS",
    "UNKNOWN",
    "Broken",
    "DaskExecutor",
    "Died",
    "Event",
    "Executor",
    "FuturesExecutor",
    "Job",
    "Marks",
    "NotAdded",
    "ProcessExecutor",
    "ProcessPoolExecutor",
    "Ready",
    "Replied",
    "Resizable",
    "Retired",
    "SerialExecutor",
    "Session",
    "SetupFailed",
    "Task",
    "ThreadExecutor",
    "ThreadFuturesExecutor",
    "create",
    "is_known",
    "is_resizable",
    "register",
]
