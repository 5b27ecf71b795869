"""Where objects come from: they are pulled when there is room for them, and never sooner."""

from __future__ import annotations

import operator
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from types import GeneratorType
from typing import Any, Protocol

from .._runtime.forks import fork_flag

SLICE = 0.005
"""Seconds of pulling after which the engine looks at its workers again."""
SLOW = 0.002
"""Seconds that a worker may idle while a chunk is filled for it; also how long a pull takes that nobody waits for."""


def end_generator(objects: object) -> None:
    """End a generator, which may hold a transaction open from one of its values to the next."""
    if isinstance(objects, GeneratorType):
        with suppress(Exception):  # its own, which must not hide why it is ended
            objects.close()


class Source(Protocol):
    """Hands out objects in input order."""

    @property
    def exhausted(self) -> bool:
        """Whether nothing will come any more, and nothing is gathered."""
        ...

    @property
    def ready(self) -> bool:
        """Whether more may be had at once, so that there is no need to wait for the workers."""
        ...

    def gather(self, size: int, *, idle: bool) -> Sequence[Any] | None:
        """Give the next chunk of up to `size` objects; None if it is not complete yet and no worker idles."""
        ...

    def give_up(self) -> list[Any]:
        """End it; gives what was pulled and not handed out."""
        ...

    def remaining(self) -> int | None:
        """How many objects are still to come, if that is known."""
        ...


class IterableSource:
    """Any iterable, pulled in the caller's thread."""

    def __init__(self, objects: Iterable[Any], *, instant: bool = False) -> None:
        """`instant`: no pull takes long enough to look at the workers in between."""
        self._total = _length(objects)
        self._instant = instant or isinstance(objects, list | tuple | range)
        self._iterator: Iterator[Any] = iter(objects)
        self._gathered: list[Any] = []
        self._handed = 0
        self._ended = self._instant and self._total == 0
        self._since = 0.0
        self._pull: float | None = None
        """Smoothed seconds that one pull takes."""
        self.error: BaseException | None = None
        """What the iterable raised."""
        self._forked = fork_flag()
        self.pulling = False
        """Whether control is in the iterable's own code."""
        self.check: Callable[[], None] | None = None
        """Called after something was pulled; raises if that must not be handed out."""

    @property
    def total(self) -> int | None:
        """How many objects there are, for a progress bar; None if nobody knows."""
        return self._total

    @property
    def exhausted(self) -> bool:
        return self._ended and not self._gathered

    @property
    def ready(self) -> bool:
        return not self.exhausted and not self._holds_back()

    def _holds_back(self) -> bool:
        """Whether to wait for a worker with what is in hand, and not for the next pull, which takes its time."""
        return bool(self._gathered) and not self._ended and self._pull is not None and self._pull > SLOW

    def remaining(self) -> int | None:
        return None if self._total is None else max(0, self._total - self._handed)

    def gather(self, size: int, *, idle: bool) -> Sequence[Any] | None:
        if not self._ended and not self._holds_back():
            self._fill(size, idle=idle)
        complete = len(self._gathered) >= size or self._ended or (idle and self._is_slow())
        if not complete or not self._gathered:
            return None
        chunk, self._gathered = self._gathered, []
        if len(chunk) > size:
            chunk, self._gathered = chunk[:size], chunk[size:]
        self._handed += len(chunk)
        return chunk

    def _fill(self, size: int, *, idle: bool) -> None:
        self.pulling = True
        try:
            if self._instant:
                self._gathered += islice(self._iterator, size - len(self._gathered))
                self._ended = len(self._gathered) < size
            else:
                self._fill_slowly(size, idle=idle)
        except StopIteration:
            self._ended = True
        except BaseException as error:  # raised to the caller when everything that was fed is finished
            if self._forked:
                raise  # a child that the iterable has forked is to end
            self.error = error
            self._ended = True
        finally:
            self.pulling = False
        if self.check is not None and self.error is None:
            self._checked(self.check)

    def _checked(self, check: Callable[[], None]) -> None:
        try:
            check()
        except BaseException:
            self._ended = True
            end_generator(self._iterator)
            self._iterator = iter(())  # or what it is wrapped in would keep it alive
            raise

    def _fill_slowly(self, size: int, *, idle: bool) -> None:
        began = before = time.perf_counter()
        if not self._gathered:
            self._since = began
        while len(self._gathered) < size:
            self._gathered.append(next(self._iterator))
            now = time.perf_counter()
            self._pull = now - before if self._pull is None else 0.8 * self._pull + 0.2 * (now - before)
            if now - began > SLICE or self._holds_back() or (idle and self._is_slow()):
                return
            before = now

    def _is_slow(self) -> bool:
        """Whether the next pull should not be waited for."""
        if self._instant or self._pull is None:
            return False
        # The first object goes out alone: nobody can tell how long the second will be in coming.
        return self._handed == 0 or self._pull > SLOW or time.perf_counter() - self._since > SLOW

    def give_up(self) -> list[Any]:
        self._ended = True
        rest, self._gathered = self._gathered, []
        return rest


class RangeSource(IterableSource):
    """Numbers, handed out as ranges, which are sent to workers without being written out."""

    def __init__(self, numbers: range) -> None:
        super().__init__(numbers)
        self._numbers = numbers

    def gather(self, size: int, *, idle: bool) -> range | None:
        chunk, self._numbers = self._numbers[:size], self._numbers[size:]
        self._handed += len(chunk)
        self._ended = not self._numbers
        return chunk or None

    def give_up(self) -> list[Any]:
        self._numbers = range(0)
        return super().give_up()


class QueueSource:
    """Objects that another thread puts in one by one."""

    ready = False

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._closed = False

    @property
    def exhausted(self) -> bool:
        return self._closed and self._queue.empty()

    def put(self, item: Any) -> None:
        """Add an object."""
        self._queue.put(item)

    def close(self) -> None:
        """Nothing more will be put in."""
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


def _length(objects: Iterable[Any]) -> int | None:
    try:
        return len(objects)  # type: ignore[arg-type]
    except TypeError:
        found = operator.length_hint(objects, -1)
        return found if found >= 0 else None
    except OverflowError:  # a range of more numbers than any list could have
        return None
