"""The rows of `Chunk` and `Failure` as the caller of a session reads and writes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db import IntegrityError, transaction

from .._db import inspection
from ..ledger.causes import failures_of
from .failures import insert_failures
from .ranges import Range, merged, renumbered
from .session import Session
from .sources import Place

if TYPE_CHECKING:
    from ..ledger.models import Failure

COLUMNS = Range._fields
BATCH = 500
"""Rows in one statement."""


class Entry(NamedTuple):
    """What the caller records of an object, or of several side by side that have not failed."""

    ended: Range | None
    """None: a worker has recorded that it ended."""
    failure: Failure | None = None


class Ended(NamedTuple):
    """What a worker has committed of a chunk, by offsets in the chunk."""

    saved: frozenset[int]
    failed: frozenset[int]
    """Their rows of `Failure` are committed, too."""
    gone: frozenset[int] = frozenset()
    """Their rows were deleted before: workers record these in ranges of their own."""


class ChunkTable:
    """The rows of one run."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def merge_all(self) -> list[Range]:
        """Join all ranges, renumber them, and give them. For the start and the end of a session."""
        with self._session.transaction():
            rows = self._rows().order_by("sequence").values_list(*COLUMNS)
            count = 0

            def counted() -> Iterable[Range]:
                nonlocal count
                for row in rows.iterator(chunk_size=5000):
                    count += 1
                    yield Range(*row)

            joined = [*merged(counted())]
            ranges = renumbered(joined)
            if len(ranges) != count or ranges != joined:
                self._rows().delete()
                self._insert(ranges)
        return ranges

    def merge_below(self, sequence: int) -> None:
        """Join ranges that lie before a sequence, which no transaction in flight can have."""
        with self._session.transaction():
            rows = self._rows().filter(sequence__lt=sequence).order_by("sequence").values_list("pk", *COLUMNS)
            group: list[int] = []
            last: Range | None = None
            for pk, *columns in list(rows):
                following = Range(*columns)
                if last is not None and last.high == following.low:
                    last = last.joined(following)
                    group.append(pk)
                else:
                    self._replace(group, last)
                    last, group = following, [pk]
            self._replace(group, last)

    def _replace(self, group: Sequence[int], ended: Range | None) -> None:
        if len(group) < 2 or ended is None:
            return
        first, *others = group
        self._rows().filter(pk=first).update(**ended._asdict())
        for at in range(0, len(others), BATCH):  # by primary key: MariaDB would lock gaps, and let workers wait
            self._rows().filter(pk__in=others[at : at + BATCH])._raw_delete(self._session.alias)

    def write(self, entries: Sequence[Entry]) -> None:
        """Record what no worker has recorded."""
        with self._session.transaction():
            try:
                with transaction.atomic(using=self._session.alias):
                    self._write(entries)
            except IntegrityError:  # a chunk that was delivered twice, or a COMMIT whose answer was lost
                for entry in entries:
                    self._write_unless_there(entry)

    def _write_unless_there(self, entry: Entry) -> None:
        try:
            with transaction.atomic(using=self._session.alias):
                self._write([entry])
        except IntegrityError:
            pass

    def _write(self, entries: Sequence[Entry]) -> None:
        self._insert([entry.ended for entry in entries if entry.ended is not None])
        insert_failures([entry.failure for entry in entries if entry.failure is not None], self._session.alias)

    def ended(self, place: Place) -> Ended:
        """Say what was committed of a chunk whose worker has died, or whose answer to COMMIT was lost.

        Rows of the same sequences are tried: the unique constraint waits for a transaction in flight.
        """
        if place.failures is not None:
            return self._resolved(place.failures)
        # In a transaction of its own: on MariaDB one that has read before it waits does not see what was committed
        # meanwhile.
        self._wait_for(place)
        with self._session.transaction():
            end = place.sequence + len(place.keys)
            rows = self._rows().filter(sequence__gte=place.sequence, sequence__lt=end)
            ranges = [Range(*row) for row in rows.values_list(*COLUMNS)]
            offsets = [offset for each in ranges for offset in _offsets(each, place)]
            gone = frozenset(
                offset for each in ranges if each.skipped == each.objects for offset in _offsets(each, place)
            )
            troubled = any(each.failed for each in ranges)
            failed_keys = self._failed_keys(place.keys) if troubled else set()
        failed = frozenset(offset for offset in offsets if place.keys[offset] in failed_keys)
        return Ended(frozenset(offsets) - failed - gone, failed, gone)

    def _resolved(self, failures: Sequence[int]) -> Ended:
        with self._session.transaction():  # the locks wait for a transaction in flight
            rows = self._failures().filter(pk__in=failures).select_for_update()
            resolved = {pk for pk, resolved_at in rows.values_list("pk", "resolved_at") if resolved_at is not None}
        saved = (offset for offset, failure in enumerate(failures) if failure in resolved)
        return Ended(frozenset(saved), frozenset())

    def _wait_for(self, place: Place) -> None:
        from ..ledger.models import Chunk

        probes = [
            Chunk(run_id=self._session.run_id, sequence=place.sequence + offset, high=key)
            for offset, key in enumerate(place.keys)
        ]
        with transaction.atomic(using=self._session.alias, durable=True):
            Chunk.objects.using(self._session.alias).bulk_create(probes, ignore_conflicts=True, batch_size=BATCH)
            transaction.set_rollback(True, using=self._session.alias)

    def waiting(self, retry: Mapping[str, Any]) -> tuple[Iterator[tuple[int, str]], int]:
        """Give the rows and keys of the failures that a retry is about, page by page, and how many there are."""
        from ..ledger.models import Run

        run = Run.objects.using(self._session.alias).get(pk=self._session.run_id)
        rows = failures_of(run, retry).values_list("pk", "key")
        limit = retry.get("limit")
        newest = rows.order_by("-pk").first()
        if newest is None:
            return iter(()), 0
        rows = rows.filter(pk__lte=newest[0])  # those that come up meanwhile are not tried again
        count = rows.count()
        return islice(_by_page(rows), limit), count if limit is None else min(count, limit)

    def _failed_keys(self, keys: Sequence[str]) -> set[str]:
        failures = self._failures()
        return {
            key
            for at in range(0, len(keys), BATCH)
            for key in failures.filter(key__in=keys[at : at + BATCH]).values_list("key", flat=True)
        }

    def unresolved(self) -> int:
        """Count the failures that are left: neither mended by a retry nor given up."""
        return int(self._failures().filter(resolved_at=None).count())

    def _failures(self) -> Any:
        from ..ledger.models import Failure

        return Failure.objects.using(self._session.alias).filter(run_id=self._session.run_id)

    def _rows(self) -> Any:
        from ..ledger.models import Chunk

        return Chunk.objects.using(self._session.alias).filter(run_id=self._session.run_id)

    def _insert(self, ranges: Sequence[Range]) -> None:
        from ..ledger.models import Chunk

        rows = [Chunk(run_id=self._session.run_id, **each._asdict()) for each in ranges]
        Chunk.objects.using(self._session.alias).bulk_create(rows, batch_size=BATCH)


def _offsets(ended: Range, place: Place) -> range:
    begin = ended.sequence - place.sequence
    return range(begin, begin + ended.objects)


def _by_page(rows: Any) -> Iterator[tuple[int, str]]:
    last = 0
    while page := list(rows.filter(pk__gt=last)[: inspection.PAGE_SIZE]):
        yield from page
        last = page[-1][0]


def sums(ranges: Iterable[Range]) -> Mapping[str, int]:
    """Give the counts of all ranges."""
    done = failed = skipped = 0
    for each in ranges:
        done, failed, skipped = done + each.done, failed + each.failed, skipped + each.skipped
    return {"done": done, "failed": failed, "skipped": skipped}
