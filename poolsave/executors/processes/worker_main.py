"""The main function of a worker process: set up, run tasks, close. `WorkerHandle` starts it."""

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
from .pipes import InheritedFile, Reader, send
from .shared_marks import SharedMarks

READY, PARTIAL, FINAL, SETUP_FAILED = b"R", b"P", b"F", b"X"
STOP = b""
TASK_HEADER = struct.Struct("!QQ")
"""The id of a task and its number of objects, as 64-bit integers. The payload follows."""


class WorkerPipes(NamedTuple):
    """The worker's ends of the pipes, and the files that it shares with its parent."""

    tasks: Connection[Any, Any]
    replies: Connection[Any, Any]
    marks: InheritedFile
    crash_log: InheritedFile
    """For the traceback that faulthandler writes when the process crashes."""


def main(
    job_or_bytes: Any, pipes: WorkerPipes, added: bool, close_parent_ends: Callable[[], None] | None = None
) -> None:
    """Set up, run tasks until the parent sends STOP, close everything. `added`: other workers of the run are there."""
    if close_parent_ends is None:
        _main(job_or_bytes, pipes, added)
    else:  # The caller's context was forked too. A worker in it would join what the caller has open there.
        Context().run(_main, job_or_bytes, pipes, added, close_parent_ends)


def _main(
    job_or_bytes: Any, pipes: WorkerPipes, added: bool, close_parent_ends: Callable[[], None] | None = None
) -> None:
    _reset_signals()
    os.setpgid(0, 0)  # a group of its own, so that processes that an object starts are ended together with it
    forked = close_parent_ends is not None
    # Only this worker's. A worker that is forked later has copies of those of earlier ones: when the parent ends, the
    # last worker notices it first, and with its end the one before it can.
    if close_parent_ends is not None:
        close_parent_ends()
    if forked:
        gc.freeze()  # a collection would write to inherited pages, and so copy them
    marks = SharedMarks.attach(pipes.marks.fd)
    # Before the set-up, which imports the project: C code may crash there, and the parent may end meanwhile.
    faulthandler.enable(pipes.crash_log.fd)
    _exit_with_parent(pipes.tasks.fileno())
    replies = pipes.replies.fileno()
    try:
        job: Job = pickle.loads(job_or_bytes) if isinstance(job_or_bytes, bytes) else job_or_bytes
        session = job.open(added=True) if added else job.open()
        if not forked:  # not before: the search for generators would miss those of a script that is imported by now
            gc.freeze()
    except BaseException as error:  # reported to the caller, which raises it
        send(replies, SETUP_FAILED + pickle.dumps(record_exception(error)))
        return
    send(replies, READY)
    try:
        tasks = Reader(pipes.tasks.fileno())
        while message := tasks.receive():
            task, size = TASK_HEADER.unpack_from(message)
            # Worker dies before this: the parent finds the task in its queue, and sends it to another one. After it:
            # the marks say which objects had begun.
            marks.begin(task, size)
            session.run(
                memoryview(message)[TASK_HEADER.size :],
                marks,
                lambda body, final: send(replies, (FINAL if final else PARTIAL) + body),
            )
    finally:
        session.close()


def _reset_signals() -> None:
    # Ctrl-C goes to the whole group. The parent decides what it means; workers finish the present object.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A fork inherits the descriptor by which an event loop of the parent's learns of signals, and would wake that loop.
    signal.set_wakeup_fd(-1)
    # The parent has blocked them around a fork, and a child inherits that.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})


def _exit_with_parent(fd: int) -> None:
    """End this process when the other end of the pipe is closed, even in the middle of an object.

    The server then rolls the object's transaction back."""

    def watch() -> None:
        poll = select.poll()
        poll.register(fd, 0)  # no events requested: poll reports only the hang-up
        poll.poll()
        os._exit(1)

    # threading.Thread.start() would wait until the thread runs.
    _thread.start_new_thread(watch, ())
