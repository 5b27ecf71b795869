"""Sources of objects: they pull an object only when there is room for it in the window."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from operator import length_hint
from types import GeneratorType
from typing import Any, Protocol

from .._pickling.plain import IMMUTABLE_TYPES
from .._runtime import forks
from .._runtime.foreign_exceptions import attribute_of, class_name_of
from ..errors import InvalidOperation

MAX_PULL_TIME = 0.005
"""Seconds of pulling after which control returns to the engine, which then polls its workers."""
SLOW_PULL = 0.002
"""Seconds that a worker may idle while its chunk is filled. A source that is slower per object is not waited for."""


def end_generator(objects: object) -> None:
    """End a generator, which may hold a transaction open from one of its values to the next."""
    if isinstance(objects, GeneratorType):
        with suppress(Exception):  # from the generator itself; it must not hide why it is closed
            objects.close()


class Source(Protocol):
    """Hands out objects in input order."""

    @property
    def total(self) -> int | None:
        """The number of all objects, if that is known. It may be an estimate, and cost a query."""
        ...

    @property
    def exhausted(self) -> bool:
        """Whether no object is left, neither to pull nor pulled."""
        ...

    @property
    def ready(self) -> bool:
        """Whether objects may be available at once, so that waiting for the workers is unnecessary."""
        ...

    def gather(self, size: int, *, idle: bool) -> Sequence[Any] | None:
        """Return the next chunk of up to `size` objects; None if it is incomplete and no worker idles."""
        ...

    def give_up(self) -> list[Any]:
        """End the source. Returns the objects that were pulled and not handed out."""
        ...

    def remaining(self) -> int | None:
        """The number of objects that are not handed out yet; None if unknown."""
        ...


class IterableSource:
    """Any iterable, pulled in the caller's thread."""

    is_plain = False
    """Whether pulling runs none of the user's code."""

    def __init__(self, objects: Iterable[Any], *, instant: bool = False) -> None:
        """`instant`: pulls are so short that the workers need not be polled in between."""
        self._total = _length(objects)
        self._instant = instant or isinstance(objects, list | tuple | range)
        self._iterator: Iterator[Any] = iter(objects)
        self._gathered: list[Any] = []
        self._handed_out = 0
        self._ended = self._instant and self._total == 0
        self._chunk_started = 0.0
        self._pull: float | None = None
        """Smoothed seconds that one pull takes."""
        self._last: Any = None
        self._last_content: Any = None
        """What the last object had in it when it was pulled, as far as that is told quickly."""
        self.is_shared = False
        """Whether objects that were handed out may still wait, and be changed."""
        self.error: BaseException | None = None
        """The exception that the iterable has raised."""
        self._forked = forks.flag
        self.pulling = False
        """Whether the iterable's own code is running."""
        self.check: Callable[[], None] | None = None
        """Called after each pull that may run the user's code. It raises if the objects must not be handed out."""

    @property
    def total(self) -> int | None:
        return self._total

    @property
    def exhausted(self) -> bool:
        return self._ended and not self._gathered

    @property
    def ready(self) -> bool:
        return not self.exhausted and not self._waits_for_worker()

    def _waits_for_worker(self) -> bool:
        """Whether the objects at hand should wait for a worker instead of for the next, slow pull."""
        return bool(self._gathered) and not self._ended and self._pull is not None and self._pull > SLOW_PULL

    def remaining(self) -> int | None:
        return None if self._total is None else max(0, self._total - self._handed_out)

    def gather(self, size: int, *, idle: bool) -> Sequence[Any] | None:
        if not self._ended and not self._waits_for_worker():
            self._fill(size, idle=idle)
        complete = len(self._gathered) >= size or self._ended or (idle and self._next_is_slow())
        if not complete or not self._gathered:
            return None
        chunk, self._gathered = self._gathered, []
        if len(chunk) > size:
            chunk, self._gathered = chunk[:size], chunk[size:]
        self._handed_out += len(chunk)
        return chunk

    def _fill(self, size: int, *, idle: bool) -> None:
        self.pulling = True
        try:
            if self._instant:
                self._gathered += islice(self._iterator, max(0, size - len(self._gathered)))
                self._ended = len(self._gathered) < size
            else:
                self._fill_slowly(size, idle=idle)
        except StopIteration:
            self._ended = True
        except BaseException as error:  # raised in the caller when all objects that were sent have ended
            if self._forked:
                raise  # this is a child that the iterable has forked: it ends
            self.error = error
            self._ended = True
        finally:
            self.pulling = False
        if self.check is not None and self.error is None:
            self._run_check(self.check)

    def _run_check(self, check: Callable[[], None]) -> None:
        try:
            check()
        except BaseException:
            self._ended = True
            end_generator(self._iterator)
            self._iterator = iter(())  # drop the reference, or the wrapping iterator would keep the generator alive
            raise

    def _fill_slowly(self, size: int, *, idle: bool) -> None:
        started = before = time.perf_counter()
        if not self._gathered:
            self._chunk_started = started
        while len(self._gathered) < size:
            self._gathered.append(self._pull_next())
            now = time.perf_counter()
            self._pull = now - before if self._pull is None else 0.8 * self._pull + 0.2 * (now - before)
            if now - started > MAX_PULL_TIME or self._waits_for_worker() or (idle and self._next_is_slow()):
                return
            before = now

    def _pull_next(self) -> Any:
        pulled = next(self._iterator)
        item = self._object_of(pulled)
        if type(item) not in IMMUTABLE_TYPES:
            if item is self._last and (self._gathered or self.is_shared):
                self._check_unchanged(item)
            self._last, self._last_content = item, _content_of(item)
        return pulled

    def _object_of(self, pulled: Any) -> Any:
        """Give the object of the user's in what the iterator gives."""
        return pulled

    def _check_unchanged(self, item: Any) -> None:
        """Refuse an object that the input has changed to give it again, while the first one may not have run."""
        if _is_same(_content_of(item), self._last_content):
            return
        index = self._handed_out + len(self._gathered) - 1
        del self._gathered[-1:]  # it is no longer what it was
        raise InvalidOperation(
            f"the input has changed its object at index {index}, {class_name_of(item)}, to give it once more, and an "
            "object may wait for its turn: make a new one for each, such as dict(row)"
        )

    def _next_is_slow(self) -> bool:
        """Whether the chunk should go out without waiting for the next pull."""
        if self._instant or self._pull is None:
            return False
        # The first object goes out alone: it is unknown how long the second one takes.
        return self._handed_out == 0 or self._pull > SLOW_PULL or time.perf_counter() - self._chunk_started > SLOW_PULL

    def give_up(self) -> list[Any]:
        self._ended = True
        rest, self._gathered = self._gathered, []
        return rest


class ListSource(IterableSource):
    """A list or tuple. A list may grow while its last objects run; as in a loop, what is appended follows."""

    is_plain = True

    @property
    def exhausted(self) -> bool:
        return self._ended or not length_hint(self._iterator)

    @property
    def ready(self) -> bool:
        return not self.exhausted

    def gather(self, size: int, *, idle: bool) -> Sequence[Any] | None:
        # Not beyond the end, after which the iterator would give nothing more.
        chunk = [*islice(self._iterator, min(size, length_hint(self._iterator)))]
        self._handed_out += len(chunk)
        return chunk or None


class RangeSource(IterableSource):
    """Numbers, handed out as ranges. These are pickled without their numbers."""

    def __init__(self, numbers: range) -> None:
        super().__init__(numbers)
        self._numbers = numbers

    def gather(self, size: int, *, idle: bool) -> range | None:
        chunk, self._numbers = self._numbers[:size], self._numbers[size:]
        self._handed_out += len(chunk)
        self._ended = not self._numbers
        return chunk or None

    def give_up(self) -> list[Any]:
        self._numbers = range(0)
        return super().give_up()


class QueueSource:
    """Objects that another thread puts in, one by one."""

    total = None
    ready = False

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._closed = False

    @property
    def exhausted(self) -> bool:
        # In this order: another thread may put something in and close the queue between the two questions.
        return self._closed and self._queue.empty()

    def put(self, item: Any) -> None:
        """Add an object."""
        self._queue.put(item)

    def close(self) -> None:
        """Declare that no more objects follow."""
        self._closed = True

    def remaining(self) -> int | None:
        return None

    def gather(self, size: int, *, idle: bool) -> Sequence[Any] | None:
        if not idle and not self._closed and self._queue.qsize() < size:
            return None
        return self._take(size) or None

    def _take(self, size: int) -> list[Any]:
        taken: list[Any] = []
        while len(taken) < size:
            try:
                taken.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return taken

    def give_up(self) -> list[Any]:
        return self._take(self._queue.qsize())


def _content_of(item: Any) -> Any:
    """Give a copy of a dictionary or a list, or the attributes of an object: of the first level only."""
    kind = type(item)
    if kind is dict or kind is list:
        return item.copy()
    attributes = attribute_of(item, "__dict__")
    return attributes.copy() if type(attributes) is dict else None


def _is_same(content: Any, before: Any) -> bool:
    try:
        return bool(content == before)
    except Exception:  # arrays have no truth, and other values what their class makes of it
        return True


def _length(objects: Iterable[Any]) -> int | None:
    try:
        return len(objects)  # type: ignore[arg-type]
    except TypeError:
        hint = length_hint(objects, -1)
        return hint if hint >= 0 else None
    except OverflowError:  # a range longer than any list can be
        return None
