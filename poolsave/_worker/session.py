"""Runs chunks, one after the other, in the caller's thread, another thread, or another process.

Executors call `WorkerSession.run`. How objects run is in `modes`.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from .._db import connections as _connections
from .._db.write_behind.pacing import Batching
from .._pickling.values import unpickle_chunk
from .._runtime.cpu_clock import CpuClock
from .._runtime.foreign_exceptions import is_a, traceback_of
from ..errors import LeaseLost, RowGone
from ..executors.protocol import Marks
from ..outcomes import Status
from .modes.fast_loop import FastLoop
from .replies import NOT_STARTED, ObjectResult, ReplyBuilder, no_clock
from .server_clock import ServerClock

if TYPE_CHECKING:
    from .job import WorkerJob
    from .recording import Recorder

_thread = threading.local()


class JobEntry:
    """While entered, the thread works for a job: it runs an object or a user's callback."""

    def __init__(self, job: object) -> None:
        self._job = job

    def __enter__(self) -> None:
        _thread.jobs = (self._job, *getattr(_thread, "jobs", ()))

    def __exit__(self, *_exc_info: object) -> None:
        _thread.jobs = _thread.jobs[1:]


def is_working_for(job: object) -> bool:
    """Whether this thread works for that job now."""
    return any(entered is job for entered in getattr(_thread, "jobs", ()))


class Mode(Protocol):
    """How a session runs objects: one of the transaction modes, or several stages."""

    @property
    def unreachable(self) -> tuple[str, str] | None:
        """The alias of a database that was waited for in vain, and the driver's message."""
        ...

    @property
    def knows_next(self) -> bool:
        """Whether the result after the last one is known already."""
        ...

    def results(self, objects: Sequence[Any], marks: Marks) -> Iterator[ObjectResult]:
        """Run the objects one after the other, and give the result of each."""
        ...

    def lacks_database(self, error: BaseException, marks: Marks) -> bool:
        """After a failure: whether there was no connection, and none was to be had since then."""
        ...

    def pop_timed_out(self) -> bool:
        """Whether the server has hit a time limit since the last call."""
        ...

    def pop_overloaded(self) -> bool:
        """Whether the server has ended what took too long, or had no connection left, since the last call."""
        ...

    def take_batching(self) -> Batching | None:
        """Give what `batch_writes` did since the last call, or None."""
        ...


class WorkerSession:
    """An opened worker. It runs objects one at a time, and replies for each of them whatever happens."""

    def __init__(  # noqa: PLR0913  the parts of a worker
        self,
        job: WorkerJob,
        mode: Mode,
        stack: ExitStack,
        *,
        own_process: bool,
        fast_call: Callable[[Any], Any] | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """`fast_call`: a function that `FastLoop` can run in place of the mode. `recorder`: of a durable run."""
        self._recorder = recorder
        self._entry = JobEntry(job)
        self._crosses = job.crosses
        self._mode = mode
        self._fast_call = fast_call
        self._stack = stack
        self._maintenance = _connections.ConnectionMaintenance() if job.owns_connections else None
        self._own_process = own_process
        self._cpu_clock = self._open_clock(own_process=own_process) if job.counts_cpu else no_clock
        self._idle_since = time.perf_counter()
        self._name: int | str = os.getpid() if own_process else threading.current_thread().name

    def _open_clock(self, *, own_process: bool) -> CpuClock:
        server = ServerClock() if own_process else None  # threads are bounded by what they compute themselves
        clock = CpuClock(own_process=own_process, server=server)
        self._stack.callback(clock.close)
        if server is not None:
            self._stack.callback(server.close)
        return clock

    def run(self, payload: Any, marks: Marks, reply: Callable[[Any, bool], None]) -> None:
        """Run one chunk. Sends one or more replies, in order, that cover every object."""
        with self._entry:
            self._run(payload, marks, reply)

    def _run(self, payload: Any, marks: Marks, reply: Callable[[Any, bool], None]) -> None:
        waited = time.perf_counter() - self._idle_since
        if self._recorder is not None:
            payload = self._recorder.begin(payload)
        objects, pickled = payload, False
        if self._crosses:
            objects, pickled = unpickle_chunk(payload, for_tries=self._fast_call is None)
        builder = ReplyBuilder(self._name, waited, crosses=self._crosses, cpu_clock=self._cpu_clock)
        if self._fast_call is None:
            self._run_mode(objects, marks, reply, builder)
        else:
            call = partial(_call_with_pickled, self._fast_call) if pickled else self._fast_call
            self._run_fast(call, objects, marks, reply, builder)
        # The last reply has left, so that the caller does not wait for what follows.
        if self._recorder is not None:
            self._recorder.leave()
        if self._maintenance is not None:
            self._maintenance.after_chunk(had_errors=builder.has_details)
        self._idle_since = time.perf_counter()

    def _run_fast(
        self,
        call: Callable[[Any], Any],
        objects: Sequence[Any],
        marks: Marks,
        reply: Callable[[Any, bool], None],
        builder: ReplyBuilder,
    ) -> None:
        def ends_run(error: BaseException) -> bool:
            lacks = self._mode.lacks_database(error, marks)
            builder.unreachable, builder.overloaded = self._mode.unreachable, self._mode.pop_overloaded()
            return lacks

        started = FastLoop(call, marks, builder, reply, ends_run).run(objects)
        if builder.has_details and self._maintenance is not None:
            _connections.release_session_locks()
        if started < len(objects):
            for _ in range(len(objects) - started):
                builder.add(NOT_STARTED)
            reply(builder.take(), True)

    def _run_mode(
        self, objects: Sequence[Any], marks: Marks, reply: Callable[[Any, bool], None], builder: ReplyBuilder
    ) -> None:
        for index, result in enumerate(self._mode.results(objects, marks), 1):
            builder.add(result if result.attempt.error is None else self._with_error(result, result.attempt.error))
            # The last object goes with the final reply.
            if index < len(objects) and builder.due(time.perf_counter(), more=self._mode.knows_next):
                builder.unreachable = self._mode.unreachable
                reply(builder.take(), False)
                builder.resume()
        builder.timed_out, builder.overloaded = self._mode.pop_timed_out(), self._mode.pop_overloaded()
        builder.batching = self._mode.take_batching()
        builder.unreachable = self._mode.unreachable
        reply(builder.take(), True)

    def _with_error(self, result: ObjectResult, error: BaseException) -> ObjectResult:
        if not self._own_process:
            # The frames' locals would keep objects and cursors alive for as long as the report lives.
            traceback.clear_frames(traceback_of(error))
        if is_a(error, RowGone) or (self._recorder is not None and is_a(error, LeaseLost)):
            return result._replace(attempt=result.attempt._replace(status=Status.SKIPPED), attempts=0)
        return result

    def close(self) -> None:
        """Close the connections that this worker opened, and undo its settings."""
        self._stack.close()


def _call_with_pickled(call: Callable[[Any], Any], item: bytes) -> Any:
    return call(pickle.loads(item))
