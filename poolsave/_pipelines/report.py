"""The report of a pipeline: its outcomes, and a row for each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from .._reports.batches import OutcomeBatch
from ..outcomes import Status
from ..reports import Report

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageReport:
    """What one stage of a pipeline did.

    What came to it either went on, or ended there in one way: without `expand`,
    `fed == out + dropped + failed + lost + skipped`.
    """

    name: str
    fed: int
    """How many objects came to it."""
    out: int
    """How many values it gave, to the next stage or as the pipeline's own: with `expand` several for an object."""
    dropped: int
    """How many objects it ended by `DROP`, or by giving nothing to go on with."""
    failed: int
    lost: int
    """How many it lost. If the executor cannot tell which of several fused stages an object was lost in, the first of
    them counts it."""
    skipped: int
    """How many it was never started for: the run was stopped, or (first stage) the row was gone."""
    seconds: float
    """Seconds that its workers spent on it, all together."""
    busy: float
    """That time as a share of what its workers had. Near 1.0 the other stages wait for this one."""


class StageCounter:
    """Counts for one stage while the pipeline runs."""

    def __init__(self, name: str, workers: int) -> None:
        self.name = name
        self.workers = workers
        """The most that it has had."""
        self.fed = 0
        self.out = 0
        self.ended = dict.fromkeys(Status, 0)
        self.seconds = 0.0

    def pass_on(self) -> None:
        """Count an object that came and went on as one value."""
        self.fed += 1
        self.out += 1

    def end(self, status: Status) -> None:
        """Count an object that came and ended here."""
        self.fed += 1
        self.ended[status] += 1

    def report(self, elapsed: float) -> StageReport:
        """Give the row of the stage."""
        return StageReport(
            name=self.name,
            fed=self.fed,
            out=self.out,
            dropped=self.ended[Status.DROPPED],
            failed=self.ended[Status.FAILED],
            lost=self.ended[Status.LOST],
            skipped=self.ended[Status.SKIPPED],
            seconds=self.seconds,
            busy=min(1.0, self.seconds / (elapsed * self.workers)) if elapsed else 0.0,
        )


class PipelineReport(Report[R]):
    """What `Pipeline.map` gives: a Report with a row per stage.

    Every value that came out, and every failure, loss, skip and drop on the way, is one outcome, with the `index` and
    `item` of the *original* object. Where a stage gives several values (`expand`), one object has several outcomes, so
    `total` counts outcomes and not objects; without such a stage the two are the same. In place of `statistics`, which
    stay empty, there are `stages`, also in the file of `to_json`.

    `failed_items()` gives original objects, each once. Left out is one of which something may have been committed: by a
    stage with a transaction that it had passed, or as another one of the values that it became. So set
    `transaction=None` for stages that save nothing.
    """

    def __init__(
        self, tallies: Sequence[StageCounter], *, keep: str, queryset: Any = None, limit: int | None = None
    ) -> None:
        super().__init__(keep=keep, queryset=queryset, limit=limit)
        self._counters = tallies
        self._unsafe: set[int] = set()
        self._limit = limit

    def _note_unsafe(self, index: int) -> None:
        # With more than `limit` of them failures are omitted, and failed_items() is refused.
        if self._limit is None or len(self._unsafe) < self._limit:
            self._unsafe.add(index)

    @property
    def stages(self) -> list[StageReport]:
        """A row per stage, from the first to the last."""
        elapsed = self.elapsed
        return [counter.report(elapsed) for counter in self._counters]

    def _indexes_to_retry(self) -> set[int]:
        return super()._indexes_to_retry() - self._unsafe

    def _worker_summary(self) -> dict[str, Any]:
        return {"stages": [asdict(row) for row in self.stages]}

    def _kept(self, batch: OutcomeBatch) -> OutcomeBatch | None:
        kept = super()._kept(batch)
        if kept is None or self._keep != "values":
            return kept
        notable = {
            offset: replace(outcome, item=None) if outcome.status is Status.DROPPED else outcome
            for offset, outcome in kept.notable.items()
        }
        return kept._replace(notable=notable)

    def __str__(self) -> str:
        width = max(len(counter.name) for counter in self._counters)
        columns = ("fed", "out", "dropped", "failed", "lost", "skipped")
        lines = [f"  {'stage':<{width}}" + "".join(f" {column:>8}" for column in columns) + "  seconds  busy"]
        for row in self.stages:
            counts = "".join(f" {getattr(row, column):>8}" for column in columns)
            lines.append(f"  {row.name:<{width}}{counts} {row.seconds:>8.2f} {row.busy:>5.0%}")
        return "\n".join([super().__str__(), *lines])
