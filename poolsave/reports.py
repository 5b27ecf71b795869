"""The report of a run: counts, outcomes and statistics. Runs and blocks fill it; users read it."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from operator import attrgetter
from os import PathLike
from typing import Any, Generic, Literal, TypeVar

from ._reports.batches import OutcomeBatch
from ._reports.causes import CauseCounts, error_key, format_cause, format_error_key, printable, with_location_note
from ._reports.durable import DurableRun
from ._reports.export import write_csv, write_json
from ._reports.statistics import Statistics
from ._reports.throttling import Throttled, throttled_lines, throttled_summary
from ._reports.trials import Trial, trial_lines, trial_summary
from .errors import InvalidOperation, InvalidOption, OperationsFailed
from .outcomes import Outcome, Status

__all__ = ["Report"]

R = TypeVar("R")
CAUSES_SHOWN = 5
"""Causes that `str(report)` lists, the most frequent first."""
NO_COUNTS = dict.fromkeys(Status, 0)
FIRST_KEPT = 1000
"""Failures, and other outcomes with an error, that the report of a stream keeps: its memory is bounded."""


class Report(Generic[R]):
    """Counts of everything, and the outcomes that `keep` asked for.

    Every object that was fed in is counted in exactly one of `succeeded`, `failed`, `lost`, `skipped` and `dropped`,
    whatever happened to the run, so these always add up to `total`. Failures, losses and skips are always kept as
    outcomes, with their objects; a stream keeps the first 1,000 failures and as many others.
    """

    def __init__(
        self,
        *,
        keep: str = "values",
        queryset: Any = None,
        statistics: Statistics | None = None,
        limit: int | None = None,
    ) -> None:
        """`limit`: the most failures, and the most other outcomes, that are kept. No value is kept then."""
        self._keep = keep if limit is None else "failures"
        self._queryset = queryset
        self._batches: list[OutcomeBatch] = []
        self._sorted = True
        self._counts = NO_COUNTS.copy()
        self._causes = CauseCounts()
        self._flawed = 0
        self._room = None if limit is None else {True: limit, False: limit}
        """How many more failures, and how many more other outcomes, are kept."""
        self._omitted = 0
        self._started_at = time.perf_counter()
        self._ended_at: float | None = None
        self.statistics = statistics or Statistics()
        """How the workers spent their time, which objects took longest, and perhaps a hint; prints as a table."""
        self.stopped: str | None = None
        """Why the run ended before its input did, or None."""
        self.tried: tuple[Trial, ...] = ()
        """With `executor="auto"`: the executors that ran the objects, in order, and why each was kept or not."""

        self.run: DurableRun | None = None
        """Of a durable run: how far it is, in all sessions, and what it is left with."""
        self.throttled: tuple[Throttled, ...] = ()
        """With `throttle`: which throttles held the run back, for how long and why; empty before the end."""

    @property
    def chosen(self) -> str | None:
        """The executor that a run with `executor="auto"` ended with, "serial" or "process"; else None."""
        return self.tried[-1].executor if self.tried else None

    def _add(self, batch: OutcomeBatch) -> None:
        for outcome in batch.notable.values():
            self._counts[outcome.status] += 1
            if _is_failure(outcome):
                self._causes.add(outcome, batch.path)
            elif outcome.ok and outcome.error is not None:
                self._flawed += 1
        self._counts[Status.SUCCEEDED] += len(batch.values) - len(batch.notable)
        kept = self._kept(batch)
        if kept is not None:
            self._sorted = self._sorted and (not self._batches or self._batches[-1].order < kept.order)
            self._batches.append(kept)

    def _kept(self, batch: OutcomeBatch) -> OutcomeBatch | None:
        if self._keep == "all":
            return batch
        if self._keep == "values":
            return batch.without_objects()
        # Successes with several attempts are notable, too, but not kept here; successes with an error are.
        notable = {
            offset: outcome
            for offset, outcome in batch.notable.items()
            if outcome.error is not None or not (outcome.ok or outcome.status is Status.DROPPED)
        }
        if self._room is not None:
            notable = {offset: outcome for offset, outcome in notable.items() if self._has_room(outcome)}
        return batch._replace(values=(), seconds=array("d"), objects=(), notable=notable) if notable else None

    def _has_room(self, outcome: Outcome[Any]) -> bool:
        assert self._room is not None
        failed = _is_failure(outcome)
        if self._room[failed]:
            self._room[failed] -= 1
            return True
        self._omitted += failed
        return False

    def _finish(
        self,
        stopped: str | None = None,
        *,
        tried: tuple[Trial, ...] = (),
        decided: Trial | None = None,
        throttled: tuple[Throttled, ...] = (),
    ) -> None:
        """`decided`: the trial of a run whose executor was decided without one."""
        self._ended_at = time.perf_counter()
        self.throttled = throttled
        if throttled:
            self.statistics.throttled = sum(entry.seconds for entry in throttled)
        self.statistics.finish()
        self.stopped = stopped
        self.tried = tried if decided is None else (replace(decided, objects=self.total, seconds=self.elapsed),)

    def _in_order(self) -> list[OutcomeBatch]:
        if not self._sorted:
            self._batches.sort(key=attrgetter("order"))
            self._sorted = True
        return self._batches

    def __iter__(self) -> Iterator[Outcome[R]]:
        """Iterate over the kept outcomes in input order."""
        for batch in self._in_order():
            if self._keep == "failures":
                yield from (batch.notable[offset] for offset in sorted(batch.notable))
            else:
                yield from batch.outcomes(with_items=self._keep == "all")

    def __len__(self) -> int:
        """The number of objects that were fed in; the same as `total`."""
        return self.total

    def __bool__(self) -> bool:
        """Always true, also for an empty report; `ok` says whether all succeeded."""
        return True

    @property
    def total(self) -> int:
        """How many objects were fed in."""
        return sum(self._counts.values())

    @property
    def succeeded(self) -> int:
        """How many objects succeeded."""
        return self._counts[Status.SUCCEEDED]

    @property
    def failed(self) -> int:
        """How many objects failed and are known to be rolled back."""
        return self._counts[Status.FAILED]

    @property
    def lost(self) -> int:
        """How many objects may or may not have been saved."""
        return self._counts[Status.LOST]

    @property
    def skipped(self) -> int:
        """How many objects were fed in but never started, in a pipeline not in all stages."""
        return self._counts[Status.SKIPPED]

    @property
    def dropped(self) -> int:
        """How many objects a stage of a pipeline ended by `DROP`."""
        return self._counts[Status.DROPPED]

    @property
    def ok(self) -> bool:
        """Whether every object that was fed in succeeded (or was dropped), and the input was read to its end.

        Of a durable run: whether all of the run is finished, by this call or before it, and no failure is unresolved.
        While the run goes on it is False."""
        complete = self.run is None or self.run.status == "finished"
        return complete and self.finished and self.succeeded + self.dropped == self.total and self.stopped is None

    @property
    def finished(self) -> bool:
        """Whether the run has ended. Then nothing here changes any more."""
        return self._ended_at is not None

    @property
    def values(self) -> list[R]:
        """The values of the successes, in input order, with no places for the others; empty with `keep="failures"`."""
        if self._keep == "failures":
            return []
        values: list[R] = []
        for batch in self._in_order():
            if batch.notable:
                values += [outcome.value for outcome in batch.outcomes(with_items=False) if outcome.ok]  # type: ignore[misc]
            else:
                values += batch.values
        return values

    @property
    def failures(self) -> list[Outcome[R]]:
        """The outcomes of failed and lost objects, in input order; of a stream those of the first 1,000 that ended."""
        return [outcome for outcome in self._notable() if _is_failure(outcome)]

    @property
    def omitted(self) -> int:
        """How many failures are counted, but not among `failures`; 0, except after a stream with more than 1,000."""
        return self._omitted

    @property
    def flawed(self) -> list[Outcome[R]]:
        """Successes with an `error`, since an `on_commit` callback raised, or the value was lost on its way back.

        Of a stream these are the first that ended: it keeps 1,000 of these and of the skipped objects together."""
        return [outcome for outcome in self._notable() if outcome.ok and outcome.error is not None]

    def _notable(self) -> Iterator[Outcome[R]]:
        for batch in self._in_order():
            yield from (batch.notable[offset] for offset in sorted(batch.notable))

    @property
    def elapsed(self) -> float:
        """Seconds from the start of the run to its end, or to now while it runs."""
        return (time.perf_counter() if self._ended_at is None else self._ended_at) - self._started_at

    @property
    def rate(self) -> float:
        """Objects that ended per second, without the skipped ones."""
        return (self.total - self.skipped) / self.elapsed if self.elapsed else 0.0

    @property
    def causes(self) -> dict[tuple[str, str | None], int]:
        """How many failures there are by the class of their error and its SQLSTATE, the most frequent cause first.

        All of them are counted, also those that a stream omits. Causes beyond the first 100 are counted together."""
        return self._causes.as_dict()

    def by_cause(self) -> dict[tuple[str, str | None], list[Outcome[R]]]:
        """Group `failures` by the class of their error and its SQLSTATE, the largest group first."""
        groups: dict[tuple[str, str | None], list[Outcome[R]]] = {}
        for outcome in self.failures:
            groups.setdefault(error_key(outcome.error), []).append(outcome)
        return dict(sorted(groups.items(), key=lambda group: -len(group[1])))

    def failed_items(self) -> Any:
        """The objects that failed and can safely be fed again: `op.map(report.failed_items())`.

        Lost objects are not among them, since they may have been saved. It is a list, or after a run over a queryset
        the same queryset, filtered by the primary keys of the rows that failed.

        Raises:
            InvalidOperation: if failures were omitted, so that some would silently not be tried again.
        """
        self._refuse_omitted("failed_items()")
        again = self._indexes_to_retry()
        items = list({failure.index: failure.item for failure in self.failures if failure.index in again}.values())
        return items if self._queryset is None else self._queryset.order_by("pk").filter(pk__in=items)

    def _indexes_to_retry(self) -> set[int]:
        return {failure.index for failure in self.failures if failure.status is Status.FAILED}

    def _refuse_omitted(self, what: str) -> None:
        if self._omitted:
            raise InvalidOperation(
                f"{what} would leave out {self._omitted} failures, since the report of a stream keeps the first "
                f"{FIRST_KEPT}: take each outcome's item as it comes, or use map()"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_queryset": None}  # pickling a queryset fetches all its rows

    def to_json(self, path: str | PathLike[str], *, only: Literal["failures"] | None = None) -> None:
        """Write the counts and every kept outcome to a file, as strict JSON.

        What JSON lacks (NaN, a set) is written as its repr. Only the owner can read a new file. The file appears when
        it is complete.

        Args:
            path: the file, which is replaced if it is there.
            only: "failures" writes the failed and lost outcomes only, and the items of `failed_items()` once more, so
                that `load_items` gives them back.

        Raises:
            InvalidOption: if `only` is something else.
            InvalidOperation: with `only`, if failures were omitted, and so would be missing in the file.
        """
        selected = {} if only is None else {"only": only}
        write_json(path, self._summary() | self._worker_summary() | selected, *self._selection(only))

    def _selection(self, only: str | None) -> tuple[Iterable[Outcome[R]], set[int] | None]:
        """Give the outcomes of a file, and the indexes of those whose items are written exactly."""
        if only is None:
            return self, None
        if only != "failures":
            raise InvalidOption("only", only, 'give "failures" or None')
        self._refuse_omitted("the file")
        return self.failures, self._indexes_to_retry()

    def _summary(self) -> dict[str, Any]:
        counts = {"total": self.total, **{str(status): count for status, count in self._counts.items()}}
        return {
            **counts,
            "elapsed": self.elapsed,
            "rate": self.rate,
            "stopped": self.stopped,
            **trial_summary(self.tried),
            **throttled_summary(self.throttled),
        }

    def _worker_summary(self) -> dict[str, Any]:
        return self.statistics.as_dict()

    def to_csv(self, path: str | PathLike[str], *, only: Literal["failures"] | None = None) -> None:
        """Write one line per kept outcome to a file. No spreadsheet takes a cell for a formula.

        Otherwise as `to_json`.
        """
        write_csv(path, *self._selection(only))

    def raise_if_failed(self) -> None:
        """Raise if an object failed or was lost; else do nothing.

        Raises:
            OperationsFailed: with the error of each of `failures`, and this report.
        """
        failures = self.failures
        if failures:
            errors = [with_location_note(outcome, of_rows=self._queryset is not None) for outcome in failures]
            causes = ", ".join(f"{count} x {format_error_key(cause)}" for cause, count in self.causes.items())
            failed = self.failed + self.lost
            raise OperationsFailed(f"{failed} of {self.total} objects failed or were lost: {causes}", errors, self)

    def __str__(self) -> str:
        """The text that `print(report)` shows."""
        lines = [
            f"{self.total} objects in {self.elapsed:.2f} s ({self.rate:.0f} per second)",
            *(f"  {count:>8} {status}" for status, count in self._counts.items() if count),
        ]
        lines += self._cause_lines()
        if self._flawed:
            lines.append(f"  {self._flawed} of the successes have an error of their own: see report.flawed")
        lines += trial_lines(self.tried)
        if self.run is not None:
            lines.append(f"  {self.run}")
        lines += throttled_lines(self.throttled)
        if self.stopped:
            lines.append(f"  stopped: {self.stopped}")
        if self.statistics.workers:
            separator = "; all were" if self.statistics.resizings else ","
            busy = f"busy for {self.statistics.busy:.0%} of their time"
            lines.append(f"  workers: {self.statistics.worker_counts}{separator} {busy}")
        if self.statistics.batching is not None:
            lines.append(f"  batched writes: {self.statistics.batching}")
        if self.statistics.hint:
            lines.append(f"  hint: {self.statistics.hint}")
        return printable("\n".join(lines))

    def _counts_text(self) -> str:
        """Give the counts in a line: "100 objects, 95 succeeded, 5 failed"."""
        counts = [f"{count} {status}" for status, count in self._counts.items() if count]
        return ", ".join([f"{self.total} objects", *counts])

    def _cause_lines(self) -> Iterator[str]:
        causes = self.causes
        for cause in islice(causes, CAUSES_SHOWN):
            first = self._causes.first(cause)
            yield from format_cause(cause, causes[cause], first, of_rows=self._queryset is not None)
        if len(causes) > CAUSES_SHOWN:
            yield f"  and {len(causes) - CAUSES_SHOWN} more causes"
        if self._omitted:
            yield f"  report.failures has the first {FIRST_KEPT} failures"

    def __repr__(self) -> str:
        counts = " ".join(f"{status}={count}" for status, count in self._counts.items() if count)
        return f"<Report total={self.total}{' ' if counts else ''}{counts}>"


def _is_failure(outcome: Outcome[Any]) -> bool:
    return outcome.status in (Status.FAILED, Status.LOST)
