"""One run of `map`, `starmap` or `stream` in the caller's thread: checks, engine, interrupts, report.

Operations make it, and PipelineRun extends it. Blocks have a BlockDriver instead.
"""

from __future__ import annotations

import atexit
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

from .._auto.engine import AutoEngine
from .._auto.sampling import SamplingSerialExecutor
from .._engine.engine import Engine
from .._engine.sources import IterableSource
from .._reports.batches import OutcomeBatch
from .._reports.trials import Trial
from .._runtime.foreign_exceptions import attach_report, is_a
from .._runtime.forks import fork_flag
from .._worker.context import CapturedContext
from .._worker.job import call_spread
from ..errors import InsideTransaction
from ..options import Options
from ..outcomes import Outcome, Status
from ..reports import Report
from .executor_choice import prepare_run, untested_trial
from .ordering import in_input_order
from .preflight import HELD_BY_INPUT, check_in_no_block, is_in_block
from .preparation import Call, WorkSpec, aliases_of_caller
from .progress import Progress, open_progress
from .querysets import as_queryset, source_of
from .signals import InterruptGuard

_open_runs: WeakSet[Run] = WeakSet()


@atexit.register
def _abandon_open_runs() -> None:
    for run in list(_open_runs):
        run.abandon()


class RunExecutor(Protocol):
    """What a run asks of its executor. Every Executor has it."""

    @property
    def inline(self) -> bool: ...
    def wake(self) -> None: ...
    def halt(self) -> None: ...


class RunEngine(Protocol):
    """What a run asks of its engine."""

    stopped: str | None
    undelivered: int

    @property
    def fatal(self) -> BaseException | None: ...
    @property
    def finished(self) -> bool: ...
    def start(self) -> None: ...
    def step(self) -> list[OutcomeBatch]: ...
    def halt(self, reason: str) -> None: ...
    def kill(self) -> None: ...
    def close(self) -> None: ...
    def lose_rest(self) -> list[OutcomeBatch]: ...


class CurrentExecutor:
    """The present executor of an engine, which may change with `executor="auto"`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def inline(self) -> bool:
        return self._engine._executor.inline

    def wake(self) -> None:
        self._engine._executor.wake()

    def halt(self) -> None:
        self._engine._executor.halt()


class RunParts(NamedTuple):
    """What a run consists of."""

    options: Options
    description: str
    source: IterableSource
    executor: RunExecutor
    engine: RunEngine
    report: Report[Any]
    aliases: tuple[str, ...]
    """On which the caller must be inside no transaction while workers run."""


class Run:
    """One call of `map`, `starmap` or `stream`. Checks are made at once; workers start with the first batch."""

    _decided: Trial | None = None
    """What `executor="auto"` means and why, if it was decided without a trial."""

    def __init__(
        self, function: Any, call: Call, constants: Mapping[str, Any], objects: Iterable[Any], options: Options
    ) -> None:
        queryset = None if call is call_spread else as_queryset(objects)
        work = WorkSpec(function, call, constants, queryset)
        executor, job, decided = prepare_run(work, options)
        if isinstance(job.context, CapturedContext):
            job.context = job.context.captured()
        source = source_of(objects, queryset)
        if isinstance(executor, SamplingSerialExecutor):
            engine: Engine = AutoEngine(work, executor, job, options, source)
        else:
            engine = Engine(executor, job, options, source)
        report: Report[Any] = Report(keep=options.keep, queryset=queryset, statistics=engine.statistics)
        self._decided = decided
        name, aliases = getattr(function, "__name__", ""), aliases_of_caller(work, options)
        self._assemble(RunParts(options, name, source, CurrentExecutor(engine), engine, report, aliases))

    def _assemble(self, parts: RunParts) -> None:
        self._options = parts.options
        self._description = parts.description
        self._source = parts.source
        self._executor = parts.executor
        self._engine = parts.engine
        self._aliases = parts.aliases
        parts.source.check = lambda: check_in_no_block(self._aliases_now(), HELD_BY_INPUT)
        self._interrupts = InterruptGuard(parts.executor.wake, at_once=self._must_raise_at_once)
        self._abandoned = False
        self._forked = fork_flag()
        self.report = parts.report

    def _must_raise_at_once(self, count: int) -> bool:
        # The input's own code ends only by an exception. In a function that runs in this thread the first signal lets
        # the object finish, and the second one ends it.
        return self._source.pulling or (self._executor.inline and count > 1)

    def _aliases_now(self) -> tuple[str, ...]:
        return () if self._executor.inline else self._aliases

    def check_in_no_block(self) -> None:
        """Refuse to go on while the caller of a stream is inside a transaction.

        Raises:
            InsideTransaction: with the Report of what there is so far. Outside of the transaction the run goes on.
        """
        if self._engine.finished:
            return
        try:
            check_in_no_block(self._aliases_now())
        except InsideTransaction as error:
            attach_report(error, self.report)
            raise

    def complete(self) -> Report[Any]:
        """Run everything, with no moment in which a signal could get past the report."""
        with self._interrupts:
            for _batch in self._batches():
                pass
        self._raise_late_interrupt()
        return self.report

    def _raise_late_interrupt(self) -> None:
        """Raise for a signal that came after everything had ended, while the handlers were still in place."""
        try:
            self._interrupts.raise_if_interrupted()
        except BaseException as error:
            attach_report(error, self.report)
            raise

    def batches(self, *, ordered: bool = False) -> Generator[OutcomeBatch, None, None]:
        """Run everything; gives what has ended, in the order of its ending or of the input.

        Closing the iterator feeds no more, finishes what runs, and stops the workers.
        """
        with self._interrupts, closing(self._batches()) as batches:
            for batch in self._in_order(batches) if ordered else batches:
                with self._interrupts.suspended():
                    yield batch
        self._raise_late_interrupt()

    def outcomes(self, *, ordered: bool) -> Iterator[Outcome[Any]]:
        """The same, outcome by outcome."""
        return OutcomeIterator(self, self.batches(ordered=ordered))

    def _in_order(self, batches: Iterator[OutcomeBatch]) -> Iterator[OutcomeBatch]:
        return in_input_order(batches, self._engine)

    def _batches(self) -> Generator[OutcomeBatch, None, None]:
        try:
            yield from self._started_batches()
        except BaseException as error:
            # Whatever ends a run: an error of the input, a progress callable, a pickling or a worker's start.
            attach_report(error, self.report)
            raise

    def _started_batches(self) -> Generator[OutcomeBatch, None, None]:
        progress = open_progress(self._options.progress, self._total, self._description)
        with closing(progress):
            try:
                _open_runs.add(self)
                self._engine.start()
                while not self._engine.finished:
                    batches = self._step()
                    advance_progress(progress, batches)
                    yield from batches
            except BaseException as error:
                self._wind_up(f"{type(error).__name__} in the caller")
                raise
            finally:
                self._close()
        self._raise_final_error()

    def _total(self) -> int | None:
        return self._source.total

    def _step(self) -> list[OutcomeBatch]:
        if self._forked:
            raise RuntimeError("this run belongs to the process that started it, and not to a child forked since")
        batches = self._engine.step()
        for batch in batches:
            self.report._add(batch)
        self._apply_interrupts()
        return batches

    def _apply_interrupts(self) -> None:
        error = self._source.error
        interrupted = is_a(error, KeyboardInterrupt) or is_a(error, SystemExit)
        if self._interrupts.count or interrupted:
            self._engine.halt("interrupted")
        if self._interrupts.count > 1:
            self._engine.kill()

    def abandon(self) -> None:
        """Let workers go at the interpreter's exit, while an iterator is still open.

        The iterator is closed when threads no longer run, and no wait is possible. Worker processes end with their
        parent, and their open transactions are rolled back.
        """
        if self._forked:
            return
        self._abandoned = True
        self._executor.halt()

    def _wind_up(self, reason: str) -> None:
        if self._abandoned or self._forked:
            return
        self._engine.halt(reason)
        if is_in_block(self._aliases_now()):
            self._engine.kill()  # workers could wait forever for locks that the caller holds
        while not self._engine.finished:
            self._step()

    def _close(self) -> None:
        if self._abandoned or self._forked:
            return
        _open_runs.discard(self)
        try:
            self._engine.close()
        finally:
            for batch in self._engine.lose_rest():
                self.report._add(batch)
            self.report.stopped = self._engine.stopped
            self.report._finish()
        if isinstance(self._engine, AutoEngine):
            self.report.tried = self._engine.trials()
        elif self._decided is not None:
            self.report.tried = (untested_trial(self._decided, self.report),)

    def _raise_final_error(self) -> None:
        error = self._source.error if self._engine.fatal is None else self._engine.fatal
        if error is None and self._interrupts.count:
            error = self._interrupts.as_exception()
        if error is not None:
            raise error
        if self._options.on_failure == "raise":
            self.report.raise_if_failed()


class OutcomeIterator(Iterator[Outcome[Any]]):
    """What `stream` gives. Not a generator: a generator that has raised cannot go on."""

    def __init__(self, run: Run, batches: Generator[OutcomeBatch, None, None]) -> None:
        self._run = run
        self._batches = batches
        self._ready: Iterator[Outcome[Any]] = iter(())

    def __next__(self) -> Outcome[Any]:
        for outcome in self._ready:
            return outcome
        self._run.check_in_no_block()
        self._ready = next(self._batches).outcomes(with_items=True)
        return next(self)

    def close(self) -> None:
        """Feed no more, finish what runs, and stop the workers."""
        self._ready = iter(())
        self._batches.close()


def advance_progress(progress: Progress, batches: list[OutcomeBatch]) -> None:
    """Add the ended objects of some batches to the progress."""
    for batch in batches:
        failed = sum(outcome.status in (Status.FAILED, Status.LOST) for outcome in batch.notable.values())
        progress.advance(len(batch.values), failed)
