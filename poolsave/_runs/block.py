"""The driver of a block: runs its engine in one thread, or with the serial executor in the thread that submits.

`Saves` makes one and submits calls. What a call is, and what its future gets, is decided in `_worker.requests` and
`results`.
"""

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
from ..options import Options
from ..outcomes import Status
from ..reports import Report
from .preparation import Prepared
from .progress import Progress, advance_progress
from .results import receive_values, resolve_future
from .signals import InterruptGuard

ASSUMED_CHUNK = 64
"""Objects per chunk that the default window of a block assumes while chunk sizes are automatic."""


class BlockDriver:
    """Owns the engine after `start`. Other threads only put calls into the source and set flags."""

    def __init__(self, prepared: Prepared, options: Options, report: Report[Any], progress: Progress) -> None:
        self._job = prepared.job
        self._decided = prepared.decided
        self._source = CallSource()
        self._engine = Engine(prepared.executor, prepared.job, options, self._source)
        self._report = report
        report.statistics = self._engine.statistics
        report.statistics.item_of = _item_of
        self._progress = progress
        self._window = threading.Semaphore(options.window or _default_window(options))
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._unfinished: set[PendingCall] = set()
        self._closing = False
        self._woken = False
        self._stepping = False
        self._halt: str | None = None
        self._kill = False
        self.forked = fork_flag()
        """True in a child that was forked since: the block belongs to its parent."""
        self.fatal: BaseException | None = None
        """What makes it impossible to run more."""

    def start(self) -> None:
        """Start the workers, and then the thread, so that workers can be forked while there is no thread."""
        try:
            self._engine.start()
            if not self._engine.inline:
                self._thread = threading.Thread(target=self._run, name="poolsave-driver", daemon=True)
                self._thread.start()
        except BaseException:
            self._undo_start()
            raise

    def _undo_start(self) -> None:
        if (
            self._thread is not None and self._thread.ident is not None
        ):  # a second Ctrl-C came when the thread ran already
            self.close("the start was broken off")
        else:
            self._closing = True
            self._engine.close()
            self._progress.close()

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
                raise self.fatal
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

    def _run(self) -> None:
        with JobEntry(self._job):
            try:
                while not (self._closing and self._engine.finished):
                    self._step()
            except BaseException as error:  # our own bugs, too: the caller would block forever
                self.fatal = error if self.fatal is None else self.fatal
            finally:
                self._finish()

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
        with InterruptGuard(lambda: None, at_once=lambda count: count > 1) as interrupts:
            while self._unfinished and not interrupts.count:
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
            self._deliver(batch)
        self.fatal = self._engine.fatal if self.fatal is None else self.fatal

    def _deliver(self, batch: OutcomeBatch) -> None:
        calls: list[PendingCall] = list(batch.objects)
        for call in calls:
            self._unfinished.discard(call)
            self._release(call)
        batch, results = receive_values(batch, calls)
        self._report._add(batch)
        for offset, call in enumerate(calls):
            with self._halting():
                if call.listener is not None:
                    call.listener.take(batch.single(offset, call.index))
                if not call.cancelled:
                    resolve_future(call.future, results[offset], batch.notable.get(offset))
        with self._halting():
            advance_progress(self._progress, [batch])

    @contextmanager
    def _halting(self) -> Iterator[None]:
        """Run user code in this thread. An exception of it ends the feeding, and the block raises it."""
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
        with self._lock:
            self._closing = True
            unfinished, self._unfinished = self._unfinished, set()
        for call in unfinished:  # only if the engine itself broke down
            self._deliver(unanswered_batch(-1, [call], Status.LOST, self.fatal))
        self._report._finish(self._engine.stopped, decided=self._decided)
        with self._halting():
            self._progress.close()


def _default_window(options: Options) -> int:
    size = ASSUMED_CHUNK if options.chunksize == "auto" else options.chunksize
    return CHUNKS_PER_WORKER * options.workers * size


def _item_of(call: PendingCall) -> Any:
    return call.request.item


class CallSource(QueueSource):
    """A queue of calls. Each can be cancelled until it is taken out."""

    def _take(self, size: int) -> list[Any]:
        taken: list[PendingCall] = super()._take(size)
        for call in taken:
            call.start()
        return taken
