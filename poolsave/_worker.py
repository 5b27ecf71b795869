"""Runs one chunk after the other, wherever it is: in the caller's thread, another thread, or another process."""

from __future__ import annotations

import os
import pickle
import random
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from . import _connections, _transactions
from ._bootstrap import Surroundings
from ._envelopes import Sealed, join, pack_function, seal_surely, unseal
from ._replies import Collector
from ._transactions import Attempt
from .executors.protocol import Marks
from .outcomes import Status

__all__ = ["Home", "WorkerJob", "WorkerSession", "call_spread", "call_with_object"]

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

    def before_fork(self) -> None:
        """Hold every connection wrapper, of all threads, so that none is finalised in the child."""
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


class WorkerSession:
    """An opened worker. It runs objects one at a time and answers for each of them, whatever happens."""

    def __init__(self, job: WorkerJob, function: Any, constants: Mapping[str, Any], stack: ExitStack) -> None:
        self._job = job
        self._function = function
        self._constants = constants
        self._stack = stack
        self._turn = job.turn or nullcontext()
        self._surround = _transactions.leave_to_function if job.transaction is None else _transactions.commit_each
        self._own_process = job.home != Home.here()
        self._name: int | str = os.getpid() if self._own_process else threading.current_thread().name

    def run(self, payload: Any, marks: Marks, reply: Callable[[Any, bool], None]) -> None:
        """Run one chunk and reply for every object of it, in order, now and then."""
        objects = join(*pickle.loads(payload)) if self._job.crosses else payload
        collector = Collector(self._name, crosses=self._job.crosses)
        began = time.perf_counter()
        for offset, item in enumerate(objects):
            if marks.halted:
                collector.add(Attempt(Status.SKIPPED), 0, 0.0)
                continue
            attempt, attempts = self._run_object(item, partial(marks.put, offset))
            now = time.perf_counter()
            collector.add(attempt, attempts, now - began)
            began = now
            if offset + 1 < len(objects) and collector.due(now):
                reply(collector.take(), False)
        reply(collector.take(), True)
        self._at_chunk_edge()

    def _run_object(self, item: Any, mark: Callable[[int], None]) -> tuple[Attempt, int]:
        attempts = 1
        while True:
            with self._turn:
                attempt = self._surround(lambda: self._call(item), mark, self._job.databases)
            if not attempt.retry or attempts > self._job.retries:
                break
            time.sleep(random.uniform(0.5, 1.0) * min(LONGEST_PAUSE, 0.02 * 2**attempts))
            attempts += 1
        if attempt.error is not None and not self._own_process:
            # The frames' locals would keep objects and cursors alive for as long as the report lives.
            traceback.clear_frames(attempt.error.__traceback__)
        return attempt, attempts

    def _call(self, item: Any) -> Any:
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
