"""The option `key`: objects of one key run one after the other, in input order.

    input -> KeyedSource -> chunk     while its key is in flight, an object waits here, behind others of that key
                 ^                    (or it goes into the same chunk, behind them)
                 +------ ended -----  KeyedEngine; also says the place in the input of each outcome

An object leaves in another order than it came. The engine counts those that have left; this is their `position` here,
while their `index` is their place in the input.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from heapq import heappop, heappush
from operator import itemgetter
from typing import Any

from .._reports.batches import OutcomeBatch, unanswered_batch
from .._runtime.foreign_exceptions import add_note, is_a
from ..errors import ValueLost
from ..executors import Executor, Job
from ..options import Options
from ..outcomes import Status
from .chunking import Chunk
from .engine import Engine
from .sources import IterableSource

MAX_WAITING = 1000
"""Objects that may wait for their key, if the option `window` says nothing else."""


class KeyedSource:
    """Hands out objects whose key is not in flight. Others wait, and nothing is pulled while too many do."""

    def __init__(self, source: IterableSource, key: Callable[[Any], Hashable], max_waiting: int) -> None:
        self._source = source
        self._key = key
        self._max_waiting = max_waiting
        self._waiting: dict[Hashable, deque[tuple[int, Any]]] = {}
        """By key, the objects that wait until one that is in flight has ended, with their indices."""
        self._waiting_count = 0
        self._free: list[tuple[int, Hashable]] = []
        """A heap of keys, whose objects wait for nothing any more, by the index of the first of these. The lowest one
        goes out first: with `ordered=True` all other outcomes may wait for it, and fill the window."""
        self._in_flight: dict[Hashable, int] = {}
        self._keyless: deque[Any] = deque()
        """Pulled objects whose key is not known yet: some are left if an exception ends the run in `key`."""
        self._pulled = 0
        """How many objects have been pulled, without these."""
        self._taken_back: list[tuple[int, Any]] = []
        """Objects of a chunk that such an exception has kept from going out, with their indices."""
        self._handed_out = 0
        self._places: dict[int, tuple[int, Hashable]] = {}
        """By position, the index and the key of an object in flight."""
        self._refused: deque[tuple[int, Any, BaseException]] = deque()

    @property
    def total(self) -> int | None:
        return self._source.total

    @property
    def exhausted(self) -> bool:
        return self._source.exhausted and not (self._waiting_count or self._refused)

    @property
    def ready(self) -> bool:
        return bool(self._free) or (self._waiting_count < self._max_waiting and self._source.ready)

    def remaining(self) -> int | None:
        left = self._source.remaining()
        return None if left is None else left + self._waiting_count

    def gather(self, size: int, *, idle: bool) -> Sequence[Any] | None:
        """Return objects that may run now, in the order of each key; None if there are none."""
        chunk: list[Any] = []
        try:
            self._fill(chunk, size, idle=idle)
        except BaseException:  # a signal's handler has raised in `key`: the run ends, and this chunk does not go out
            self._take_back(chunk)
            raise
        return chunk or None

    def _fill(self, chunk: list[Any], size: int, *, idle: bool) -> None:
        keys: set[Hashable] = set()
        while self._free and len(chunk) < size:
            self._take_waiting(chunk, keys, size)
        room = min(size - len(chunk), self._max_waiting - self._waiting_count)
        if room > 0 and not self._source.exhausted:
            self._keyless += self._source.gather(room, idle=idle and not chunk) or ()
        while self._keyless:
            self._take_pulled(self._keyless[0], chunk, keys)
            self._keyless.popleft()
            self._pulled += 1

    def _take_back(self, chunk: list[Any]) -> None:
        self._handed_out -= len(chunk)
        for position, item in enumerate(chunk, self._handed_out):
            self._taken_back.append((self._places.pop(position)[0], item))

    def _take_waiting(self, chunk: list[Any], keys: set[Hashable], size: int) -> None:
        _index, key = heappop(self._free)
        waiting = self._waiting[key]
        while waiting and len(chunk) < size:
            self._hand_out(*waiting.popleft(), key, chunk, keys)
            self._waiting_count -= 1
        if not waiting:
            del self._waiting[key]

    def _take_pulled(self, item: Any, chunk: list[Any], keys: set[Hashable]) -> None:
        index = self._pulled
        try:
            key = self._key(item)
            is_in_flight = key in self._in_flight
        except Exception as error:  # from the user's function, or of a key without a hash
            add_note(error, "poolsave: this is about the key of the object, which has not run")
            self._refused.append((index, item, error))
            return
        if key in self._waiting or (is_in_flight and key not in keys):
            self._waiting.setdefault(key, deque()).append((index, item))
            self._waiting_count += 1
        else:
            self._hand_out(index, item, key, chunk, keys)

    def _hand_out(self, index: int, item: Any, key: Hashable, chunk: list[Any], keys: set[Hashable]) -> None:
        self._place(index, key)
        keys.add(key)
        chunk.append(item)

    def _place(self, index: int, key: Hashable) -> None:
        self._places[self._handed_out] = index, key
        self._handed_out += 1
        self._in_flight[key] = self._in_flight.get(key, 0) + 1

    def take_refused(self) -> tuple[Any, BaseException] | None:
        """Give an object without a key, which counts as handed out now, and why it has none."""
        if not self._refused:
            return None
        index, item, error = self._refused.popleft()
        self._place(index, object())
        return item, error

    def index_at(self, position: int) -> int:
        """The place in the input of an object in flight."""
        return self._places[position][0]

    def keys_at(self, positions: range) -> set[Hashable]:
        """The keys of objects in flight."""
        return {self._places[position][1] for position in positions}

    def end(self, position: int) -> int:
        """Take note that an object has ended; gives its index."""
        index, key = self._places.pop(position)
        self._in_flight[key] -= 1
        if not self._in_flight[key]:
            del self._in_flight[key]
            if key in self._waiting:
                heappush(self._free, (self._waiting[key][0][0], key))
        return index

    def give_up(self) -> list[Any]:
        """End the source. Returns what has been pulled and not handed out, in input order."""
        left = [*self._taken_back, *(pair for waiting in self._waiting.values() for pair in waiting)]
        left += [(index, item) for index, item, _error in self._refused]
        left.sort(key=itemgetter(0))
        left += enumerate([*self._keyless, *self._source.give_up()], self._pulled)
        self._waiting, self._waiting_count = {}, 0
        self._taken_back.clear()
        self._keyless.clear()
        self._refused.clear()
        self._free.clear()
        for index, _item in left:
            self._place(index, object())
        return [item for _index, item in left]


class KeyedEngine(Engine):
    """An engine whose objects of one key run one after the other, also those that run again."""

    def __init__(
        self, executor: Executor, job: Job, options: Options, source: IterableSource, key: Callable[[Any], Hashable]
    ) -> None:
        self._keyed = KeyedSource(source, key, options.window or MAX_WAITING)
        super().__init__(executor, job, options, self._keyed)
        self.statistics.index_of = self._keyed.index_at

    def _next_chunk(self) -> Chunk | None:
        # The parts of a chunk whose worker has died may have keys in common.
        busy: set[Hashable] = set()
        if self._requeued:
            busy.update(*(self._keys_of(chunk) for chunk in self._tasks.values()))
        for place, chunk in enumerate(self._requeued):
            keys = self._keys_of(chunk)
            if busy.isdisjoint(keys):
                del self._requeued[place]
                return chunk
            busy |= keys
        return self._gather()

    def _next_size(self) -> int:
        # Outcomes that wait for their turn can fill a window that has become smaller, while their turn waits here.
        return super()._next_size() or int(not self._tasks)

    def _keys_of(self, chunk: Chunk) -> set[Hashable]:
        return self._keyed.keys_at(range(chunk.index + chunk.answered, chunk.index + len(chunk.objects)))

    def _gather(self) -> Chunk | None:
        chunk = super()._gather()
        while (refused := self._keyed.take_refused()) is not None:
            item, error = refused
            self._fed += 1
            self._add(unanswered_batch(self._fed - 1, [item], Status.FAILED, error))
        return chunk

    def _add(self, batch: OutcomeBatch) -> None:
        for single in self._with_indices(batch):
            super()._add(single)

    def _with_indices(self, batch: OutcomeBatch) -> Iterator[OutcomeBatch]:
        for offset in range(len(batch.values)):
            index = self._keyed.end(batch.first + offset)
            outcome = batch.notable.get(offset)
            if outcome is not None and is_a(outcome.error, ValueLost):
                outcome.error.index = index
            yield batch.single(offset, index)
