"""One run of `map`, `starmap` or `stream` in the caller's thread: engine, interrupts, order, report.

`run_of` makes the run of one operation, `_pipelines.planning` that of a pipeline. Blocks have a BlockDriver instead.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, nullcontext
from functools import partial
from operator import attrgetter
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakSet

from .._auto.engine import AutoEngine
from .._auto.sampling import SamplingSerialExecutor
from .._db.sqlite import WholeTables
from .._engine.engine import Engine
from .._engine.keyed import KeyedEngine
from .._engine.sources import IterableSource
from .._engine.throttling import ThrottleMeter
from .._reports.batches import OutcomeBatch
from .._reports.trials import Trial
from .._runtime import forks
from .._runtime.foreign_exceptions import attach_report, class_name_of, is_a
from .._worker.job import WorkerJob
from ..errors import InsideTransaction, InvalidOption
from ..executors import Executor
from ..options import Options
from ..outcomes import Outcome
from ..reports import Report
from .preflight import HELD_BY_INPUT, check_in_no_block, check_total, is_in_block
from .preparation import OperationSpec, ProcessPools, prepare_run, source_of
from .progress import RunDisplay, RunLog, open_progress
from .signals import InterruptGuard, report_interrupt

CLOSED = "the stream was closed"
NOT_READING = nullcontext()
AnyReport = TypeVar("AnyReport", bound=Report[Any])
_open_runs: WeakSet[Run[Any]] = WeakSet()


@atexit.register
def _abandon_open_runs() -> None:
    for run in list(_open_runs):
        run.abandon()


class RunEngine(Protocol):
    """What a run asks of its engine; `Engine` says what each member means."""

    @property
    def inline(self) -> bool: ...
    @property
    def inside(self) -> bool: ...
    @property
    def has_workers(self) -> bool: ...
    @property
    def total(self) -> int | None: ...
    @property
    def meter(self) -> ThrottleMeter | None: ...
    @property
    def stopped(self) -> str | None: ...
    @property
    def fatal(self) -> BaseException | None: ...
    @property
    def finished(self) -> bool: ...
    def start(self) -> None: ...
    def step(self, *, undelivered: int) -> list[OutcomeBatch]: ...
    def wake(self) -> None: ...
    def halt(self, reason: str) -> None: ...
    def kill(self) -> None: ...
    def abandon(self) -> None: ...
    def close(self) -> None: ...
    def lose_rest(self) -> list[OutcomeBatch]: ...
    def trials(self) -> tuple[Trial, ...]: ...


def run_of(
    spec: OperationSpec, objects: Iterable[Any], *, total: int | None = None, limit: int | None = None
) -> Run[Report[Any]]:
    """Check everything that can be checked now, and make the run of one operation.

    `total`: how many objects progress expects. `limit`: that of the Report.

    Raises:
        PoolsaveError: what `prepare_run` refuses.
    """
    if limit is not None and spec.options.run is not None:
        raise InvalidOption("run", spec.options.run, "a stream cannot be durable; use map()")
    check_total(total, objects)
    spec = spec.over(objects)
    executor, job, decided = prepare_run(spec)
    job.capture_context()
    engine, source = _engine_of(spec, executor, job, objects)
    report: Report[Any] = Report(
        keep=spec.options.keep, queryset=spec.queryset, statistics=engine.statistics, limit=limit
    )
    report.run = engine.run
    name = getattr(spec.function, "__name__", "")
    aliases = partial(getattr, spec, "aliases")
    return Run(engine, source, report, spec.options, name=name, aliases=aliases, total=total, decided=decided)


def _engine_of(
    spec: OperationSpec, executor: Executor, job: WorkerJob, objects: Iterable[Any]
) -> tuple[Engine, IterableSource]:
    if spec.options.run is not None:
        from .durable import durable_engine  # few runs need it

        return durable_engine(spec, executor, job, objects)
    source = source_of(objects, spec.queryset)
    source.is_shared = not executor.inline and (executor.shares_memory or spec.options.key is not None)
    if isinstance(executor, SamplingSerialExecutor):
        return AutoEngine(ProcessPools(spec, job.context), executor, job, spec.options, source), source
    if spec.options.key is not None:
        return KeyedEngine(executor, job, spec.options, source, spec.options.key), source
    return Engine(executor, job, spec.options, source), source


def complete_run(
    make: Callable[[], Run[AnyReport]], on_outcome: Callable[[Outcome[Any]], object] | None = None
) -> AnyReport:
    """Make a run and complete it, so that a Ctrl-C at any instant has the report.

    Raises:
        InvalidOption: if `on_outcome` cannot be called.
    """
    run = None
    try:
        if not (on_outcome is None or callable(on_outcome)):
            raise InvalidOption("on_outcome", on_outcome, "give a callable that takes an Outcome, or None")
        run = make()
        return run.complete(on_outcome)
    except KeyboardInterrupt as error:
        report_interrupt(error, None if run is None else run.report)
        raise


class Run(Generic[AnyReport]):
    """One call of `map`, `starmap` or `stream`. Workers start with the first batch."""

    def __init__(  # noqa: PLR0913  the parts of a run
        self,
        engine: RunEngine,
        source: IterableSource,
        report: AnyReport,
        options: Options,
        *,
        name: str,
        aliases: Callable[[], tuple[str, ...]],
        total: int | None = None,
        decided: Trial | None = None,
    ) -> None:
        """`total`: how many outcomes are expected, where the caller knows it better than the input does.

        `aliases` gives those on which the caller must be inside no transaction while workers run.

        `decided`: what `executor="auto"` means and why, if it was decided without a trial."""
        self._engine = engine
        self._source = source
        self.report = report
        self._options = options
        self._name = name
        self._aliases = aliases
        self._decided = decided
        self._total = total
        self._reorderer = Reorderer()
        # Without a reference to the run, which would be a cycle and keep it until garbage is collected.
        self._callables = Callables()
        self._interrupts = InterruptGuard(
            engine.wake, at_once=partial(_must_raise_at_once, engine, source, self._callables)
        )
        self._may_read = True
        """Whether code of the user's may read tables in this thread while workers run."""
        self._abandoned = False
        self._forked = forks.flag
        source.check = partial(_check_input, engine, aliases)

    def _aliases_now(self) -> tuple[str, ...]:
        return _aliases_of_workers(self._engine, self._aliases)

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

    def complete(self, on_outcome: Callable[[Outcome[Any]], object] | None = None) -> AnyReport:
        """Run everything, with no moment in which a signal could get past the report.

        `on_outcome` is called with each outcome. What it raises ends the run, as an exception of a progress callable.
        """
        self._callables.on_outcome = on_outcome
        self._may_read = not self._source.is_plain or on_outcome is not None or callable(self._options.progress)
        with self._interrupts:
            for _batch in self._batches():
                pass
        self._raise_late_interrupt()
        return self.report

    def _raise_late_interrupt(self) -> None:
        """Raise for a signal that came after everything had ended, while the handlers were still in place."""
        if self._interrupts.count:
            error = self._interrupts.as_exception()
            attach_report(error, self.report)
            raise error

    def batches(self, *, ordered: bool) -> Generator[OutcomeBatch, None, None]:
        """Run everything; gives the batches in the order of their ending, or in that of the input.

        Between two batches signals have their usual effect. End it with `close_batches`.
        """
        with self._interrupts, closing(self._batches()) as batches:
            for batch in self._reorderer.in_input_order(batches) if ordered else batches:
                with self._interrupts.suspended():
                    yield batch
        self._raise_late_interrupt()

    def close_batches(self, batches: Generator[OutcomeBatch, None, None]) -> None:
        """Feed no more, finish what runs, stop the workers, and complete the report."""
        signals_before = self._interrupts.count
        batches.close()
        if not (self.report.finished or self._forked or self._abandoned):  # it had not begun
            self.report._finish(CLOSED)
        if self._interrupts.count > signals_before:
            self._raise_late_interrupt()

    def _batches(self) -> Generator[OutcomeBatch, None, None]:
        try:
            yield from self._started_batches()
        except BaseException as error:
            # Whatever ends a run: an error of the input, a progress callable, a pickling or a worker's start.
            attach_report(error, self.report)
            raise

    def _started_batches(self) -> Generator[OutcomeBatch, None, None]:
        progress = open_progress(self._options.progress, self._expected_total, self._name)
        reading = WholeTables() if self._may_read and self._engine.has_workers else NOT_READING
        with reading, RunDisplay(progress, RunLog(self._name, self.report)) as display:
            try:
                _open_runs.add(self)
                self._engine.start()
                display.start(self._options)
                while not self._engine.finished:
                    batches = self._step()
                    self._callables.call(display, batches, self._engine.meter)
                    yield from batches
            except BaseException as error:
                self._wind_up(_reason_of(error))
                raise
            finally:
                self._close()
        self._raise_final_error()

    def _expected_total(self) -> int | None:
        return self._engine.total if self._total is None else self._total

    def _step(self) -> list[OutcomeBatch]:
        if self._forked:
            raise RuntimeError("this run belongs to the process that started it, and not to a child forked since")
        batches = self._engine.step(undelivered=self._reorderer.undelivered)
        for batch in batches:
            self.report._add(batch)
        self._apply_interrupts()
        return batches

    def _apply_interrupts(self) -> None:
        error = self._source.error
        interrupted = error is not None and (is_a(error, KeyboardInterrupt) or is_a(error, SystemExit))
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
        self._engine.abandon()

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
        self._source.check = None  # it knows the engine, which knows the source
        try:
            self._engine.close()
        finally:
            for batch in self._engine.lose_rest():
                self.report._add(batch)
            meter = self._engine.meter
            self.report._finish(
                self._engine.stopped,
                tried=self._engine.trials(),
                decided=self._decided,
                throttled=() if meter is None else meter.summary(),
            )

    def _raise_final_error(self) -> None:
        error = self._source.error if self._engine.fatal is None else self._engine.fatal
        if error is None and self._interrupts.count:
            error = self._interrupts.as_exception()
        if error is not None:
            raise error
        if self._options.on_failure == "raise":
            self.report.raise_if_failed()


class Callables:
    """What is called with what has ended: progress, and `on_outcome`."""

    on_outcome: Callable[[Outcome[Any]], object] | None = None
    running = False

    def call(self, display: RunDisplay, batches: list[OutcomeBatch], meter: ThrottleMeter | None) -> None:
        """Show the outcomes, and why there are no more of them."""
        self.running = True
        try:
            display.add(batches)
            if meter is not None:
                display.show_throttle(meter)
            if self.on_outcome is not None:
                for batch in batches:
                    for outcome in batch.outcomes(with_items=True):
                        self.on_outcome(outcome)
        finally:
            self.running = False


def _must_raise_at_once(engine: RunEngine, source: IterableSource, callables: Callables, count: int) -> bool:
    # The input's own code ends only by an exception. In a function that runs in this thread, and in a callable that
    # gets progress or outcomes, and in a throttle, the first signal lets it finish, and the second one ends it.
    looking = engine.meter is not None and engine.meter.looking
    return source.pulling or ((engine.inside or callables.running or looking) and count > 1)


def _aliases_of_workers(engine: RunEngine, aliases: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
    return () if engine.inline else aliases()


def _check_input(engine: RunEngine, aliases: Callable[[], tuple[str, ...]]) -> None:
    check_in_no_block(_aliases_of_workers(engine, aliases), HELD_BY_INPUT)


class Reorderer:
    """Holds batches back until everything before them has left.

    An object has one outcome, unless a stage with `expand` has made several values of it. Then each outcome comes in a
    batch of its own.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, list[OutcomeBatch]] = {}
        self.undelivered = 0
        """How many outcomes wait."""

    def in_input_order(self, batches: Iterator[OutcomeBatch]) -> Iterator[OutcomeBatch]:
        """Give the batches in the order of the input, and the outcomes of one object in the order of its values."""
        next_index = 0
        for batch in batches:
            self._waiting.setdefault(batch.first, []).append(batch)
            self.undelivered += len(batch.values)
            while self._is_complete(next_index):
                group = sorted(self._waiting.pop(next_index), key=attrgetter("path"))
                next_index += len(group[0].values)
                self.undelivered -= sum(len(ready.values) for ready in group)
                yield from group

    def _is_complete(self, index: int) -> bool:
        group = self._waiting.get(index)
        return group is not None and group[-1].outcomes_of_object == len(group)  # the last one has their number


def _reason_of(error: BaseException) -> str:
    if is_a(error, GeneratorExit):
        return CLOSED
    return "interrupted" if is_a(error, KeyboardInterrupt) else f"{class_name_of(error)} in the caller"
