"""The report of a pipeline: what became of everything, and a row for each stage."""

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
    """Among stages that share a worker the first one counts what was lost in nobody knows which of them, since the
    executor cannot tell how far a worker was that has died."""
    skipped: int
    """How many it was never begun for: the run was stopped, or (first stage) their row was gone."""
    seconds: float
    """The time that its workers were at it, all together."""
    busy: float
    """That time as a share of what its workers had: near 1.0 it is what the others wait for."""


class StageCounter:
    """Counts for one stage while the pipeline runs."""

    def __init__(self, name: str, workers: int) -> None:
        self.name = name
        self.workers = workers
        self.fed = 0
        self.out = 0
        self.ends = dict.fromkeys(Status, 0)
        self.seconds = 0.0

    def pass_on(self) -> None:
        """An object came, and went on as one value."""
        self.fed += 1
        self.out += 1

    def end(self, status: Status) -> None:
        """An object came, and ended."""
        self.fed += 1
        self.ends[status] += 1

    def told(self, elapsed: float) -> StageReport:
        """The row."""
        return StageReport(
            name=self.name,
            fed=self.fed,
            out=self.out,
            dropped=self.ends[Status.DROPPED],
            failed=self.ends[Status.FAILED],
            lost=self.ends[Status.LOST],
            skipped=self.ends[Status.SKIPPED],
            seconds=self.seconds,
            busy=min(1.0, self.seconds / (elapsed * self.workers)) if elapsed else 0.0,
        )


class PipelineReport(Report[R]):
    """What `Pipeline.map` gives: a Report with a row per stage.

    Every value that came out, and every failure, loss, skip and drop on the way, is one outcome, with the `index` and
    `item` of the *original* object. Where a stage gives several values (`expand`), one object has several outcomes, so
    `total` counts outcomes and not objects; without such a stage the two are the same. In place of `statistics`, which
    stay empty, there are `stages`, also in the file of `to_json`.
    """

    def __init__(self, tallies: Sequence[StageCounter], *, keep: str, queryset: Any = None) -> None:
        super().__init__(keep=keep, queryset=queryset)
        self._tallies = tallies
        self._unsafe: set[int] = set()

    @property
    def stages(self) -> list[StageReport]:
        """A row per stage, from the first to the last."""
        elapsed = self.elapsed
        return [tally.told(elapsed) for tally in self._tallies]

    def failed_items(self) -> Any:
        """The original objects that failed and can safely be fed again, each once, in input order.

        Left out is an object of which something may have been committed: by a stage with a transaction that it had
        passed, or as another one of the values that it became. So set `transaction=None` for stages that save nothing.
        After a run over a queryset it is that queryset, filtered by the primary keys.
        """
        found = {
            failure.index: failure.item
            for failure in self.failures
            if failure.status is Status.FAILED and failure.index not in self._unsafe
        }
        items = list(found.values())
        return items if self._queryset is None else self._queryset.order_by("pk").filter(pk__in=items)

    def _of_workers(self) -> dict[str, Any]:
        return {"stages": [asdict(row) for row in self.stages]}

    def _kept(self, batch: OutcomeBatch) -> OutcomeBatch | None:
        kept = super()._kept(batch)
        if kept is None or self._keep != "values":
            return kept
        bare = {
            place: replace(outcome, item=None) if outcome.status is Status.DROPPED else outcome
            for place, outcome in kept.notable.items()
        }
        return kept._replace(notable=bare)

    def __str__(self) -> str:
        width = max(len(tally.name) for tally in self._tallies)
        heads = ("fed", "out", "dropped", "failed", "lost", "skipped")
        lines = [f"  {'stage':<{width}}" + "".join(f" {head:>8}" for head in heads) + "  seconds  busy"]
        for row in self.stages:
            counts = "".join(f" {getattr(row, head):>8}" for head in heads)
            lines.append(f"  {row.name:<{width}}{counts} {row.seconds:>8.2f} {row.busy:>5.0%}")
        return "\n".join([super().__str__(), *lines])
