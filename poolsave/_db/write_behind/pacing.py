"""Decides for which chunks of a worker write-behind is tried, and counts what it did, for the report.

Where it does not pay, since chunks have to be undone or since each row is sent at once, it rests: for one chunk,
then for four times as many each time, and then it is tried again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

LONGEST_REST = 128
"""Chunks. A chunk that is undone costs at most a second run of it, so that trying costs less than a hundredth."""
MIN_ROWS_PER_FLUSH = 2
"""Rows that have to go together; fewer are not worth the work."""
MAX_REASON = 100
"""Characters of a statement that are kept."""
MAX_REASONS = 20
"""Different reasons that are kept per reply."""


@dataclass(frozen=True, slots=True)
class Batching:
    """What `batch_writes` did in a run."""

    batched: int = 0
    """Chunks whose rows were buffered."""
    undone: int = 0
    """Chunks that were rolled back and run again in the ordinary way."""
    rested: int = 0
    """Chunks for which it was not tried, since it could not be or had not paid before."""
    rows: int = 0
    """Rows that were buffered."""
    flushes: int = 0
    """How often buffered rows were sent, at the end of a chunk or earlier."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Statements that made rows be sent early, and why chunks ran again or were not tried, with their numbers."""
    repeated: int = 0
    """Chunks of `batched` with rows that were there already, whose objects ran again. All of the chunk ran again if the
    order of these objects matters."""
    spared: int = 0
    """SELECTs that were not sent, since an earlier object of the chunk had sent the same, less those that were sent
    once more to check the answer."""

    def __add__(self, other: Batching) -> Batching:
        counts = {name: getattr(self, name) + getattr(other, name) for name in COUNTS}
        return Batching(**counts, reasons=Counter(self.reasons) + Counter(other.reasons))

    def __str__(self) -> str:
        text = f"{self.rows} rows in {self.flushes} flushes of {self.batched} chunks"
        if self.spared:
            text += f"; {self.spared} SELECTs were not sent again"
        if self.repeated:
            text += f"; in {self.repeated} of them objects ran again, since rows were there already"
        if self.undone or self.rested:
            text += f"; {self.undone} chunks ran again in the ordinary way, and {self.rested} ran in it at once"
        for reason, count in Counter(self.reasons).most_common(1):
            text += f"; most often because of: {reason} ({count} times)"
        return text


COUNTS = ("batched", "undone", "rested", "rows", "flushes", "repeated", "spared")


class Pacing:
    """The decisions and counts of one worker."""

    def __init__(self) -> None:
        self._rest = self._bad = 0
        self._counts = Counter[str]()
        self._reasons = Counter[str]()

    def is_resting(self) -> bool:
        """Whether the next chunk is one of those that are run in the ordinary way."""
        if self._rest == 0:
            return False
        self._rest -= 1
        self._counts["rested"] += 1
        return True

    def refuse(self, reason: str) -> None:
        """Count a chunk for which it cannot be tried."""
        self._counts["rested"] += 1
        self.note(reason)

    def note(self, reason: str) -> None:
        """Count a reason."""
        reason = " ".join(reason.split())[:MAX_REASON]
        if reason in self._reasons or len(self._reasons) < MAX_REASONS:
            self._reasons[reason] += 1

    def end(self, *, rows: int, flushes: int, undone: str | None, repeated: bool = False, spared: int = 0) -> None:
        """Count a chunk for which it was tried, and rest if it did not pay."""
        if undone is not None:
            self._counts["undone"] += 1
            self.note(undone)
        else:
            self._counts.update(batched=1, rows=rows, flushes=flushes, repeated=repeated, spared=spared)
        pays = undone is None and rows >= MIN_ROWS_PER_FLUSH * flushes
        self._bad = 0 if pays else self._bad + 1
        self._rest = 0 if pays else min(4 ** (self._bad - 1), LONGEST_REST)

    def take(self) -> Batching | None:
        """Give what has been counted since the last time; None if it was nothing."""
        if not self._counts:
            return None
        batching = Batching(**self._counts, reasons=dict(self._reasons))
        self._counts.clear()
        self._reasons.clear()
        return batching
