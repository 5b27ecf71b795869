"""The driver of a block: runs its engine in one thread, or with the serial executor in the thread that submits.

`Saves` makes one and submits calls. What a call is, is decided in `_worker.requests`.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from django.db import connections

from .._engine.chunking import CHUNKS_PER_WORKER
from .._engine.engine import Engine
from .._engine.sources import QueueSource
from .._engine.worker_policy import FEWEST
from .._environment.django_setup import DjangoEnvironment
from .._reports.batches import OutcomeBatch, unanswered_batch
from .._reports.causes import exception_chain
from .._runtime import forks
from .._runtime.foreign_exceptions import attach_report, class_name_of, is_a, set_cause
from .._runtime.forks import end_child
from .._worker.requests import PendingCall
from .._worker.session import JobEntry, is_working_for
from ..errors import TimedOut, ValueLost, WorkerDied
from ..errors._of_objects import stand_in_for
from ..executors import is_resizable
from ..options import AUTO, Options, worker_range
from ..outcomes import Outcome, Status
from ..reports import Report
from .preparation import Prepared
from .progress import Progress, RunDisplay, RunLog
from .signals import InterruptGuard

ASSUMED_CHUNK = 64
"""Objects per chunk that the default window of a block assumes while chunk sizes are automatic."""


class BlockDriver:
    """Owns the engine after `start`. Other threads only put calls into the source and set flags."""

    def __init__(self, prepared: Prepared, options: Options, progress: Progress) -> None:
        options = _begin_with_enough(prepared, options)
        self._job = prepared.job
        self._decided = prepared.decided
        self._source = CallSource()
        self._engine = Engine(prepared.executor, prepared.job, options, self._source)
        self._engine.statistics.item_of = lambda call: call.request.item
        self.report: Report[Any] = Report(keep=options.keep, statistics=self._engine.statistics)
        self._display = RunDisplay(progress, RunLog("concurrent_saves", self.report))
        self._options = options
        self._window = threading.Semaphore(options.window or _default_window(options))
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._taken_over = threading.Lock()
        """Held by the thread that runs the engine, or by a start that was broken off before there was one."""
        self._unfinished: set[PendingCall] = set()
        self._closing = False
        self._woken = False
        self._stepping = False
        self._in_callback = False
        self._halt: str | None = None
        self._kill = False
        self.forked = forks.flag
        """True in a child that was forked since: the block belongs to its parent."""
        self.fatal: BaseException | None = None
        """What makes it impossible to run more."""

    def start(self) -> None:
        """Start the workers, and then the thread, so that workers can be forked while there is no thread."""
        try:
            self._engine.start()
            self._display.start(self._options)
            if not self._engine.inline:
                self._thread = threading.Thread(target=self._run_in_thread, name="poolsave-driver", daemon=True)
                self._thread.start()
        except BaseException:
            self._undo_start()
            raise

    def _undo_start(self) -> None:
        # A second Ctrl-C may come when the thread exists already. It runs now, or never does anything.
        if self._taken_over.acquire(blocking=False):
            self._closing = True
            self._engine.close()
            self._display.close()
        else:
            self.close("the start was broken off")

    def submit(self, call: PendingCall) -> None:
        """Take a call, when there is room for it.

        Raises:
            RuntimeError: if the block has been left.
            BaseException: what made it impossible to run anything.
        """
        if self.forked:
            raise RuntimeError("this block belongs to the process that entered it, and not to a child forked since")
        inside = self.is_inside()
        if not inside:
            self._window.acquire()
            call.counted = True
        with self._lock:
            if self.fatal is not None or (self._closing and not inside):
                self._release(call)
                if self.fatal is None:
                    raise RuntimeError("the concurrent_saves() block has been left: submit inside it")
                attach_report(self.fatal, self.report)
                raise self.fatal
            # Before the driver can see it: it takes the call out of here as soon as that has ended.
            self._unfinished.add(call)
            self._source.put(call)
        self._wake()
        if self._engine.inline:
            self._run_inline()

    def _wake(self) -> None:
        # The driver clears the flag before it reads the queue, so it sees the call of a caller that finds the flag set.
        if not self._woken:
            self._woken = True
            self._engine.wake()

    def close(self, halt: str | None) -> None:
        """Finish everything, or with `halt` only what runs, and stop the workers."""
        if self.forked:
            return
        with self._lock:
            self._closing = True
            self._halt = self._halt or halt
            self._source.close()
        if self._thread is None:
            self._run()
        else:
            self._engine.wake()
            self._thread.join()

    def interrupt(self) -> None:
        """The first call ends the feeding, the second ends what runs. Safe in a signal handler."""
        self._kill = self._halt is not None
        self._halt = self._halt or "interrupted"
        self._engine.wake()

    def abandon(self) -> None:
        """End a block that was never left, since an exception came before its `__exit__` started. Does not wait."""
        if self._closing or self.forked:
            return
        self._halt = self._halt or "the block was abandoned"
        self._closing = True
        self._source.close()
        if self._thread is None:
            self._run()
        else:
            self._engine.wake()

    def is_inside(self) -> bool:
        """Whether a callback, or an object that runs in this process, is submitting.

        It must not wait for room in the window that only its own end can make. It may submit while the block is being
        left, since it has not ended itself.
        """
        return is_working_for(self._job)

    def _run_in_thread(self) -> None:
        if self._taken_over.acquire(blocking=False):
            self._run()

    def _run(self) -> None:
        with JobEntry(self._job):
            try:
                while not (self._closing and self._engine.finished):
                    self._step()
            except BaseException as error:  # our own bugs, too: the caller would block forever
                self.fatal = error if self.fatal is None else self.fatal
            finally:
                self._finish()
                if self._thread is not None and DjangoEnvironment.has_settings():
                    connections.close_all()  # this thread's own: those of callbacks, progress callables and throttles

    def _run_inline(self) -> None:
        with self._lock:
            if self._stepping:  # submitted in a callback or a running function: the outer loop runs it
                return
            self._stepping = True
            try:
                with JobEntry(self._job):
                    self._step_while_busy()
            finally:
                self._stepping = False

    def _step_while_busy(self) -> None:
        with InterruptGuard(self._engine.wake, at_once=self._must_raise_at_once) as interrupts:
            while self._unfinished and not interrupts.count:
                self._step()
        if interrupts.count:
            raise interrupts.as_exception()

    def _must_raise_at_once(self, count: int) -> bool:
        return count > 1 and (self._engine.inside or self._in_callback)

    def _step(self) -> None:
        self._woken = False
        if self._halt is not None:
            self._engine.halt(self._halt)
        if self._kill:
            self._engine.kill()
        for batch in self._engine.step():
            self._deliver(batch)
        if self._engine.meter is not None:
            with self._halting():
                self._in_callback = True
                self._display.show_throttle(self._engine.meter)
        self.fatal = self._engine.fatal if self.fatal is None else self.fatal

    def _deliver(self, batch: OutcomeBatch) -> None:
        calls: list[PendingCall] = list(batch.objects)
        for call in calls:
            self._unfinished.discard(call)
            self._release(call)
        batch, results = receive_values(batch, calls)
        self.report._add(batch)
        for offset, call in enumerate(calls):
            if call.listener is not None:
                call.listener.take(batch.single(offset, call.index))
            with self._halting():
                self._in_callback = True
                if not call.cancelled:
                    resolve_future(call.future, results[offset], batch.notable.get(offset))
        with self._halting():
            self._in_callback = True
            self._display.add([batch])

    @contextmanager
    def _halting(self) -> Iterator[None]:
        """Run user code in this thread. An exception of it ends the feeding, and the block raises it."""
        # `_in_callback` is set where this is used: a signal that came here before the yield would not be caught below.
        try:
            yield
            self._in_callback = False
        except BaseException as error:
            self._in_callback = False
            if self.forked:
                end_child(error)
            self.fatal = error if self.fatal is None else self.fatal
            self._halt = self._halt or f"{class_name_of(error)} in a callback"
        if self.forked:
            end_child()

    def _release(self, call: PendingCall) -> None:
        if call.counted:
            self._window.release()

    def _finish(self) -> None:
        self._engine.close()
        # Under the lock: a call that is being submitted is refused, or among these.
        with self._lock:
            self._closing = True
            unfinished, self._unfinished = self._unfinished, set()
        for call in unfinished:  # only if the engine itself broke down
            self._deliver(unanswered_batch(-1, [call], Status.LOST, self.fatal))
        throttled = () if self._engine.meter is None else self._engine.meter.summary()
        self.report._finish(self._engine.stopped, decided=self._decided, throttled=throttled)
        with self._halting():
            self._display.close()


def _begin_with_enough(prepared: Prepared, options: Options) -> Options:
    """Let a block that chooses its number of workers begin with `FEWEST`, if the databases have room for them.

    Its driver is a thread, beside which no more can be forked.
    """
    least, most = worker_range(options.workers)
    if options.workers != AUTO or least >= FEWEST or not is_resizable(prepared.executor):
        return options
    room = prepared.job.room_for_workers()
    return options.using(workers=(FEWEST if room is None else min(FEWEST, least + room), most))


def _default_window(options: Options) -> int:
    size = ASSUMED_CHUNK if options.chunksize == "auto" else options.chunksize
    return CHUNKS_PER_WORKER * worker_range(options.workers).least * size


class CallSource(QueueSource):
    """A queue of calls. Each can be cancelled until it is taken out."""

    def _take(self, size: int) -> list[Any]:
        taken: list[PendingCall] = super()._take(size)
        for call in taken:
            call.start()
        return taken


def receive_values(batch: OutcomeBatch, calls: list[PendingCall]) -> tuple[OutcomeBatch, list[Any]]:
    """Give the batch with the caller's objects in place of calls, and the results for the futures."""
    values = list(batch.values)
    results: list[Any] = [None] * len(calls)
    notable: dict[int, Outcome[Any]] = {}
    for offset, call in enumerate(calls):
        outcome = batch.notable.get(offset)
        if call.cancelled:
            index = batch.first + offset
            outcome = Outcome(index=index, status=Status.SKIPPED, item=call.request.item, attempts=0)
        elif outcome is None or _has_value(outcome):
            try:
                values[offset], results[offset] = call.request.receive(values[offset])
            except BaseException as error:  # a model attribute that refuses the key; the row is saved
                outcome = _value_lost(batch.first + offset, error)
        if outcome is not None:
            _unwrap_item(outcome.error, call)
            value = values[offset] if _has_value(outcome) else None
            notable[offset] = replace(outcome, item=call.request.item, value=value)
    return batch._replace(values=values, objects=[call.request.item for call in calls], notable=notable), results


def _value_lost(index: int, cause: BaseException) -> Outcome[Any]:
    error = ValueLost(index)
    set_cause(error, cause)
    return Outcome(index=index, status=Status.SUCCEEDED, error=error)


def _unwrap_item(error: BaseException | None, call: PendingCall) -> None:
    # The engine names the call as item; the user knows the object in it.
    for cause in exception_chain(error):
        if (is_a(cause, WorkerDied) or is_a(cause, TimedOut)) and cause.item is call:
            cause.item = call.request.item


def _has_value(outcome: Outcome[Any]) -> bool:
    return outcome.ok and not is_a(outcome.error, ValueLost)


def resolve_future(future: concurrent.futures.Future[Any], result: Any, outcome: Outcome[Any] | None) -> None:
    """Set the result or exception of a call's future."""
    if outcome is None or _has_value(outcome):
        future.set_result(result)
    elif outcome.status is Status.SKIPPED:
        cancelled = concurrent.futures.CancelledError("it was never started")
        future.set_exception(cancelled if outcome.error is None else _truthy(outcome.error))
    else:
        future.set_exception(_truthy(outcome.error))


def _truthy(error: BaseException | None) -> BaseException | None:
    """Futures take a falsy exception for none, and give None as their result (CPython issue 132063)."""
    if error is None or _is_true(error):
        return error
    return stand_in_for(error)


def _is_true(error: BaseException) -> bool:
    try:
        return bool(error)
    except BaseException:  # a broken __bool__ would break the future, too
        return False
