"""What `stream` gives: an iterator of outcomes with a report of them. A `Run` does the work."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

from ._pipelines.report import PipelineReport
from ._reports.batches import OutcomeBatch
from ._runs.run import Run
from ._runs.signals import report_interrupt
from ._runtime.foreign_exceptions import is_a
from .outcomes import Outcome
from .reports import Report

__all__ = ["OutcomeStream", "PipelineStream"]

R = TypeVar("R")


class OutcomeStream(Iterator[Outcome[R]], Generic[R]):
    """An iterator of outcomes that also has their `report`.

    `with operation.stream(rows) as outcomes:` closes it where the block is left; without `with` it is a plain iterator.

    Example:
        >>> from poolsave import pooled_operation
        >>> @pooled_operation(executor="serial", transaction=None)
        ... def invert(number):
        ...     return 1 / number
        >>> with invert.stream([1, 0, 2]) as outcomes:
        ...     for outcome in outcomes:
        ...         print(outcome)
        <Outcome 0 succeeded value=1.0>
        <Outcome 1 failed error=ZeroDivisionError('division by zero')>
        <Outcome 2 succeeded value=0.5>
        >>> outcomes.report.causes
        {('ZeroDivisionError', None): 1}
    """

    # Not a generator: a generator that has raised cannot go on.

    def __init__(self, make: Callable[[], Run[Any]], *, ordered: bool) -> None:
        self._ready: Iterator[Outcome[R]] = iter(())
        try:
            self._run = make()
            self._batches: Generator[OutcomeBatch, None, None] = self._run.batches(ordered=ordered)
        except KeyboardInterrupt as error:
            report_interrupt(error, None)
            raise

    @property
    def report(self) -> Report[R]:
        """The report of everything that has ended, at any time, also after an early end, an error or Ctrl-C.

        It may be some outcomes ahead of the iterator, since what has ended is counted at once. Its memory is bounded,
        whatever `keep` says: all counts and `causes`, no values, and the first 1,000 `failures`.
        """
        report: Report[R] = self._run.report
        return report

    def __next__(self) -> Outcome[R]:
        try:
            for outcome in self._ready:
                return outcome
            self._run.check_in_no_block()
            self._ready = next(self._batches).outcomes(with_items=True)
        except KeyboardInterrupt as error:
            self._end_interrupted(error)
            raise
        return next(self)

    def _end_interrupted(self, error: KeyboardInterrupt) -> None:
        self.close()
        report_interrupt(error, self.report)

    def close(self) -> None:
        """Feed no more, finish what runs, and stop the workers. Then the report is complete.

        Raises:
            KeyboardInterrupt, SystemExit: for a signal that came meanwhile, with the Report as their `report`.
        """
        self._ready = iter(())
        self._run.close_batches(self._batches)

    def __enter__(self) -> OutcomeStream[R]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        try:
            self.close()
            if error is not None and is_a(error, KeyboardInterrupt):
                report_interrupt(error, self.report)
        except KeyboardInterrupt as interruption:
            self._end_interrupted(interruption)
            raise


class PipelineStream(OutcomeStream[R]):
    """The stream of a pipeline, whose report has a row per stage."""

    @property
    def report(self) -> PipelineReport[R]:
        """As that of `OutcomeStream`."""
        report: PipelineReport[R] = self._run.report
        return report

    def __enter__(self) -> PipelineStream[R]:
        return self
