"""Runs one chunk after the other, wherever it is: in the caller's thread, another thread, or another process."""

from __future__ import annotations

import os
import pickle
import random
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from . import _connections, _transactions
from ._bootstrap import Surroundings
from ._deadlines import Deadline
from ._envelopes import Sealed, join, pack_function, seal_surely, unseal
from ._replies import Collector
from ._settling import what_became_of
from ._together import End, Undone, commit_together
from ._transactions import Attempt
from .executors.protocol import Marks
from .outcomes import Status

__all__ = ["Home", "WorkerJob", "WorkerSession", "call_spread", "call_with_object", "in_worker_thread"]

PROCESS_TOKEN = secrets.token_hex(8)
"""Inherited by forks, different in every process that was started afresh, also on another machine."""
LONGEST_PAUSE = 1.0
"""Seconds; the pause before a retry grows from 0.02 s and is drawn at random, so that two deadlocked workers part."""


class Home(NamedTuple):
    """Which process the caller is."""

    token: str
    pid: int

    @classmethod
    def here(cls) -> Home:
        return cls(PROCESS_TOKEN, os.getpid())


def call_with_object(function: Callable[..., Any], item: Any, constants: Mapping[str, Any]) -> Any:
    """`map`: the object is the only positional argument."""
    return function(item, **constants)


def call_spread(function: Callable[..., Any], item: Any, constants: Mapping[str, Any]) -> Any:
    """`starmap`: a tuple gives positional arguments, a mapping gives keyword arguments."""
    if isinstance(item, Mapping):
        return function(**{**constants, **item})
    if isinstance(item, tuple | list):
        return function(*item, **constants)
    raise TypeError(f"starmap takes tuples and mappings, not {item!r}: use map() for single objects")


@dataclass(kw_only=True)
class WorkerJob:
    """What every worker of a run needs to know. Pickled, it holds bytes and plain data, so that a fresh process can
    bring Django up before anything of the user's is restored."""

    function: Any
    call: Callable[[Callable[..., Any], Any, Mapping[str, Any]], Any]
    constants: Mapping[str, Any]
    transaction: str | None
    databases: tuple[str, ...]
    retries: int
    timeout: float | None
    noted: bool
    inline: bool
    crosses: bool
    surroundings: Surroundings | None
    settings: _connections.SettingsByAlias
    home: Home = field(default_factory=Home.here)
    turn: threading.Lock | None = None
    held: tuple[object, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        packed = pack_function(self.function, self.constants)
        return {**self.__dict__, "function": Sealed(packed), "constants": {}, "turn": None, "held": ()}

    def settle(self, note: int) -> Status:
        """In the caller: ask the database what became of a transaction by what its worker noted."""
        (alias,) = self.databases
        return what_became_of(note, alias, self.settings[alias])

    @property
    def fork_is_possible(self) -> bool:
        """Whether no SQLite file is inside a transaction of the caller's."""
        return self.surroundings is None or not any(one.in_atomic_block for one in _connections.open_sqlite_files())

    @property
    def fork_changes_nothing(self) -> bool:
        """Whether there is nothing that the caller would have to close, also in the middle of a run."""
        return self.surroundings is None or not _connections.open_sqlite_files()

    def before_fork(self) -> None:
        """Close SQLite files, and hold every connection wrapper, of all threads, so that none is finalised there."""
        if self.surroundings is not None:
            _connections.close_sqlite_files()
        if threading.active_count() > 1:
            self.held = _connections.hold_wrappers()

    @property
    def preload(self) -> bytes:
        """What a fork server needs to know to set up Django and import the function's module before it forks."""
        return pickle.dumps((self.surroundings, getattr(self.function, "__module__", None)))

    def open(self) -> WorkerSession:
        """Set up a worker in this thread."""
        fresh = self.home.token != PROCESS_TOKEN
        forked = not fresh and self.home.pid != os.getpid()
        stack = ExitStack()
        with stack:  # closed again if anything below raises
            if self.surroundings is not None and not self.inline:
                self._surround(stack, fresh=fresh, forked=forked)
            function, constants = self._restored()
            return WorkerSession(self, function, constants, stack.pop_all())

    def _surround(self, stack: ExitStack, *, fresh: bool, forked: bool) -> None:
        assert self.surroundings is not None
        if fresh:
            self.surroundings.bring_up()
        if fresh or forked:
            _connections.forget_inherited(self.held)
        stack.enter_context(self.surroundings.active(fresh=fresh))
        stack.enter_context(_connections.own_connections(self.settings, whole_process=fresh or forked))

    def _restored(self) -> tuple[Any, Mapping[str, Any]]:
        if isinstance(self.function, Sealed):
            function, constants = unseal(self.function)
            return function, constants
        return self.function, self.constants


_here = threading.local()


def in_worker_thread() -> bool:
    """Whether this thread is running an object at the moment."""
    return getattr(_here, "busy", False)


class WorkerSession:
    """An opened worker. It runs objects one at a time and answers for each of them, whatever happens."""

    def __init__(self, job: WorkerJob, function: Any, constants: Mapping[str, Any], stack: ExitStack) -> None:
        self._job = job
        self._function = function
        self._constants = constants
        self._stack = stack
        self._turn = job.turn or nullcontext()
        self._deadline = nullcontext() if job.timeout is None else Deadline(job.timeout)
        self._own_process = job.home != Home.here()
        self._name: int | str = os.getpid() if self._own_process else threading.current_thread().name

    def run(self, payload: Any, marks: Marks, reply: Callable[[Any, bool], None]) -> None:
        """Run one chunk and reply for every object of it, in order, now and then."""
        _here.busy = True
        try:
            self._run(payload, marks, reply)
        finally:
            _here.busy = False

    def _run(self, payload: Any, marks: Marks, reply: Callable[[Any, bool], None]) -> None:
        objects = join(*pickle.loads(payload)) if self._job.crosses else payload
        collector = Collector(self._name, crosses=self._job.crosses)
        run = self._together if self._job.transaction == "chunk" else self._one_by_one
        for place, (end, attempts) in enumerate(run(objects, 0, marks, 1), 1):
            if end.attempt.error is not None and not self._own_process:
                # The frames' locals would keep objects and cursors alive for as long as the report lives.
                traceback.clear_frames(end.attempt.error.__traceback__)
            collector.add(end.attempt, attempts, end.seconds)
            if place < len(objects) and collector.due(time.perf_counter()):
                reply(collector.take(), False)
        reply(collector.take(), True)
        self._at_chunk_edge()

    def _one_by_one(self, objects: Sequence[Any], first: int, marks: Marks, tries: int) -> Iterator[tuple[End, int]]:
        for offset, item in enumerate(objects, first):
            if marks.halted:
                yield End(Attempt(Status.SKIPPED), 0.0), 0
                continue
            began = time.perf_counter()
            attempt, attempts = self._try_alone(item, marks, offset, tries)
            yield End(attempt, time.perf_counter() - began), attempts

    def _try_alone(self, item: Any, marks: Marks, offset: int, tries: int) -> tuple[Attempt, int]:
        last = tries + self._job.retries
        while True:
            with self._turn:
                attempt = self._attempt(partial(self._call, item, marks), marks, offset)
            if not attempt.retry or tries >= last:
                return attempt, tries
            time.sleep(random.uniform(0.5, 1.0) * min(LONGEST_PAUSE, 0.02 * 2**tries))
            tries += 1

    def _attempt(self, call: Callable[[], Any], marks: Marks, offset: int) -> Attempt:
        if self._job.transaction is None:
            return _transactions.leave_to_function(call, marks, offset)
        return _transactions.commit_alone(call, marks, offset, self._job.databases, noted=self._job.noted)

    def _together(self, objects: Sequence[Any], first: int, marks: Marks, tries: int) -> Iterator[tuple[End, int]]:
        if len(objects) == 1:
            yield from self._one_by_one(objects, first, marks, tries)
            return
        calls = [partial(self._call, item, marks) for item in objects]
        with self._turn:
            ends = commit_together(calls, marks, first, self._job.databases, noted=self._job.noted)
        if not isinstance(ends, Undone):
            yield from ((end, tries if end.attempt.status is not Status.SKIPPED else 0) for end in ends)
        elif ends.halve:
            middle = len(objects) // 2
            yield from self._together(objects[:middle], first, marks, tries + 1)
            yield from self._together(objects[middle:], first + middle, marks, tries + 1)
        else:
            yield from self._one_by_one(objects, first, marks, tries + 1)

    def _call(self, item: Any, marks: Marks) -> Any:
        if self._job.timeout is None:
            return self._call_now(item)
        marks.clock(time.monotonic())
        try:
            with self._deadline:
                return self._call_now(item)
        finally:
            marks.clock(0.0)

    def _call_now(self, item: Any) -> Any:
        if not self._job.crosses:
            return self._job.call(self._function, item, self._constants)
        # Both ways inside the transaction: what cannot cross is a failure that is rolled back.
        return seal_surely(self._job.call(self._function, unseal(item), self._constants))

    def _at_chunk_edge(self) -> None:
        if self._job.surroundings is not None and not self._job.inline:
            _connections.at_chunk_edge()

    def close(self) -> None:
        """Close the connections that this worker opened, and put back what it found."""
        self._stack.close()
