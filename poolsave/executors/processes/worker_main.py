"""The life of a worker process, seen from inside."""

from __future__ import annotations

import _thread
import faulthandler
import gc
import os
import pickle
import select
import signal
import struct
from collections.abc import Callable
from contextvars import Context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from ..._pickling.exceptions import record_exception
from ..protocol import Job
from .descriptors import InheritedFile
from .pipes import Reader, send
from .shared_marks import SharedMarks

READY, PARTIAL, FINAL, SETUP_FAILED = b"R", b"P", b"F", b"X"
STOP = b""
TASK_HEADER = struct.Struct("!QQ")
"""The number and the size of a task; its payload follows."""


class WorkerPipes(NamedTuple):
    """The worker's ends of what joins it to its parent."""

    tasks: Connection[Any, Any]
    replies: Connection[Any, Any]
    marks: InheritedFile
    faults: InheritedFile
    """What faulthandler writes when the process crashes."""


def main(parcel: Any, line: WorkerPipes, close_copies: Callable[[], None] | None = None) -> None:
    """Set up, run tasks until told to stop, close everything."""
    if close_copies is None:
        _main(parcel, line)
    else:  # Forked by the caller, whose context is not for a worker: it would join what the caller has open there.
        Context().run(_main, parcel, line, close_copies)


def _main(parcel: Any, line: WorkerPipes, close_copies: Callable[[], None] | None = None) -> None:
    _reset_signals()
    os.setpgid(0, 0)  # so that what an object has started can be ended with it
    if close_copies is not None:  # of the parent's own ends
        close_copies()
    gc.freeze()  # what was inherited stays; looking at it would copy its memory
    state = SharedMarks.attach(line.marks.fd)
    faulthandler.enable(line.faults.fd)
    _exit_with_parent(line.tasks.fileno())
    replies = line.replies.fileno()
    try:
        job: Job = pickle.loads(parcel) if isinstance(parcel, bytes) else parcel
        session = job.open()
    except BaseException as error:  # told to the caller, who raises it
        send(replies, SETUP_FAILED + pickle.dumps(record_exception(error)))
        return
    send(replies, READY)
    try:
        tasks = Reader(line.tasks.fileno())
        while message := tasks.receive():
            task, size = TASK_HEADER.unpack_from(message)
            state.begin(task, size)
            session.run(
                memoryview(message)[TASK_HEADER.size :],
                state,
                lambda body, final: send(replies, (FINAL if final else PARTIAL) + body),
            )
    finally:
        session.close()


def _reset_signals() -> None:
    # Ctrl-C goes to the whole group: the parent decides what it means, workers finish what they are at.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})


def _exit_with_parent(fd: int) -> None:
    """End this process as soon as nobody holds the other end of the pipe, also in the middle of an object, whose
    transaction the server then rolls back."""

    def watch() -> None:
        poll = select.poll()
        poll.register(fd, 0)  # no events asked for: only the hang-up is told
        poll.poll()
        os._exit(1)

    # Not by threading.Thread, which waits until the thread runs.
    _thread.start_new_thread(watch, ())
