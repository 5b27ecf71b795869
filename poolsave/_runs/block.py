"""Runs the engine of a block in one thread, or for the serial executor in whichever thread submits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .._engine.chunking import CHUNKS_PER_WORKER
from .._engine.engine import Engine
from .._engine.sources import QueueSource
from .._reports.batches import OutcomeBatch, unanswered_batch
from .._runtime.forks import end_child, fork_flag
from .._worker.requests import PendingCall
from .._worker.session import JobEntry, is_working_for
from ..executors import Executor, Job
from ..options import Options
from ..outcomes import Status
from ..reports import Report
from .progress import Progress
from .results import receive_values, resolve_future
from .run import advance_progress
from .signals import InterruptGuard

UNKNOWN_CHUNK = 64
"""Objects per chunk that the window of a block allows for while chunks are automatic."""


class BlockDriver:
    """Owns the engine after `start`; other threads only put calls into the source and set flags."""

    def __init__(self, executor: Executor, job: Job, options: Options, report: Report[Any], progress: Progress) -> None:
        self._executor = executor
        self._job = job
        self._source = CallSource()
        self._engine = Engine(executor, job, options, self._source)
        self._report = report
        report.statistics = self._engine.statistics
        report.statistics.item_of = _item_of
        self._progress = progress
        self._window = threading.Semaphore(options.window or _default_window(options))
        self._entrance = threading.RLock()
        self._thread: threading.Thread | None = None
        self._open: set[PendingCall] = set()
        self._closing = False
        self._woken = False
        self._stepping = False
        self._halt: str | None = None
        self._kill = False
        self.forked = fork_flag()
        """Says in a child that was forked since that the block is not its own."""
        self.fatal: BaseException | None = None
        """Why nothing more can be taken."""

    def start(self) -> None:
        """Start the workers, and then the thread, so that workers can be forked while there is no thread."""
        try:
            self._engine.start()
            if not self._executor.inline:
                self._thread = threading.Thread(target=self._run, name="poolsave-driver", daemon=True)
                self._thread.start()
        except BaseException:
            self._break_off()
            raise

    def _break_off(self) -> None:
        if self._thread is not None and self._thread.ident is not None:  # a second Ctrl-C, when it ran already
            self.leave("the start was broken off")
        else:
            self._closing = True
            self._engine.close()
            self._progress.close()

    def send(self, call: PendingCall) -> None:
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
        with self._entrance:
            if self.fatal is not None or (self._closing and not inside):
                self._release(call)
                if self.fatal is None:
                    raise RuntimeError("the concurrent_saves() block has been left: submit inside it")
                raise self.fatal
            self._open.add(call)
            self._source.put(call)
        self._wake()
        if self._executor.inline:
            self._run_here()

    def _wake(self) -> None:
        # The driver clears the mark before it looks into the queue, so a call that finds it set will be seen.
        if not self._woken:
            self._woken = True
            self._executor.wake()

    def leave(self, halt: str | None) -> None:
        """Finish everything, or with `halt` only what runs, and stop the workers."""
        if self.forked:
            return
        with self._entrance:
            self._closing = True
            self._halt = self._halt or halt
            self._source.close()
        if self._thread is None:
            self._run()
        else:
            self._executor.wake()
            self._thread.join()

    def interrupt(self) -> None:
        """The first call ends the feeding, the second ends what runs. Safe in a signal handler."""
        self._kill = self._halt is not None
        self._halt = self._halt or "interrupted"
        self._executor.wake()

    def abandon(self) -> None:
        """The block is gone without having been left: an exception came before that could begin. Does not wait."""
        if self._closing or self.forked:
            return
        self._halt = self._halt or "the block was abandoned"
        self._closing = True
        self._source.close()
        if self._thread is None:
            self._run()
        else:
            self._executor.wake()

    def is_inside(self) -> bool:
        """Whether a callback, or an object that runs in this process, is submitting. It must not wait for room that
        only its own end can make, and it may do so while the block is being left, since it is not finished itself."""
        return is_working_for(self._job)

    def _run(self) -> None:
        with JobEntry(self._job):
            try:
                while not (self._closing and self._engine.finished):
                    self._step()
            except BaseException as error:  # a fault of poolsave's own must reach the caller, who else waits for ever
                self.fatal = error if self.fatal is None else self.fatal
            finally:
                self._finish()

    def _run_here(self) -> None:
        with self._entrance:
            if self._stepping:  # submitted from a callback or a running function; the loop below will come to it
                return
            self._stepping = True
            try:
                with JobEntry(self._job):
                    self._step_while_busy()
            finally:
                self._stepping = False

    def _step_while_busy(self) -> None:
        with InterruptGuard(lambda: None, at_once=lambda count: count > 1) as interrupts:
            while self._open and not interrupts.count:
                self._step()
        if interrupts.count:
            raise interrupts.as_exception()

    def _step(self) -> None:
        self._woken = False
        if self._halt is not None:
            self._engine.halt(self._halt)
        if self._kill:
            self._engine.kill()
        for batch in self._engine.step():
            self._settle(batch)
        self.fatal = self._engine.fatal if self.fatal is None else self.fatal

    def _settle(self, batch: OutcomeBatch) -> None:
        calls: list[PendingCall] = list(batch.objects)
        for call in calls:
            self._open.discard(call)
            self._release(call)
        batch, results = receive_values(batch, calls)
        self._report._add(batch)
        for place, call in enumerate(calls):
            with self._halting():
                if call.sink is not None:
                    call.sink.take(batch.single(place, call.place))
                if not call.cancelled:
                    resolve_future(call.future, results[place], batch.notable.get(place))
        with self._halting():
            advance_progress(self._progress, [batch])

    @contextmanager
    def _halting(self) -> Iterator[None]:
        """Around code of the user's in this thread: what it raises ends the feeding, and is raised by the block."""
        try:
            yield
        except BaseException as error:
            if self.forked:
                end_child(error)
            self.fatal = error if self.fatal is None else self.fatal
            self._halt = self._halt or f"{type(error).__name__} in a callback"
        if self.forked:
            end_child()

    def _release(self, call: PendingCall) -> None:
        if call.counted:
            self._window.release()

    def _finish(self) -> None:
        self._engine.close()
        with self._entrance:
            self._closing = True
            left, self._open = self._open, set()
        for call in left:  # only if the engine itself broke down
            self._settle(unanswered_batch(-1, [call], Status.LOST, self.fatal))
        self._report.stopped = self._engine.stopped
        self._report._finish()
        with self._halting():
            self._progress.close()


def _default_window(options: Options) -> int:
    size = UNKNOWN_CHUNK if options.chunksize == "auto" else options.chunksize
    return CHUNKS_PER_WORKER * options.workers * size


def _item_of(call: PendingCall) -> Any:
    return call.request.item


class CallSource(QueueSource):
    """A queue of calls, each of which can be cancelled until it is taken out."""

    def _take(self, size: int) -> list[Any]:
        taken: list[PendingCall] = super()._take(size)
        for call in taken:
            call.begin()
        return taken
