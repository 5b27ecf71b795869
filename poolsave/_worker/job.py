"""What every worker of a run needs to know, and how a worker is set up from it, in whichever thread or process."""

from __future__ import annotations

import decimal
import gc
import os
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from .._db import connections as _connections
from .._db.commit_status import commit_status
from .._db.descriptors import open_sqlite_descriptors
from .._db.fork_safety import discard_inherited_connections, pin_connections
from .._db.redacted import dumps
from .._environment.django_setup import DjangoEnvironment
from .._environment.random_generators import find_generators, is_seeded, reseed_generators
from .._pickling.code import CodeVersion
from .._pickling.values import Pickled, check_not_from_shell, from_wire, pickle_function
from ..errors import InvalidOperation
from ..outcomes import Status
from .context import CapturedContext, PickledContext
from .hooks import Hooks
from .rows import RowLoader, pack_queryset, unpack_queryset
from .session import WorkerSession

PROCESS_TOKEN = secrets.token_hex(8)
"""Inherited by forks, different in every process that was started afresh, also on another machine."""


class ProcessIdentity(NamedTuple):
    """Which process the caller is."""

    token: str
    pid: int

    @classmethod
    def here(cls) -> ProcessIdentity:
        return cls(PROCESS_TOKEN, os.getpid())


def call_with_object(function: Callable[..., Any], constants: Mapping[str, Any], item: Any) -> Any:
    """`map`: the object is the only positional argument."""
    return function(item, **constants)


def call_spread(function: Callable[..., Any], constants: Mapping[str, Any], item: Any) -> Any:
    """`starmap`: a tuple gives positional arguments, a mapping gives keyword arguments."""
    if isinstance(item, Mapping):
        return function(**{**constants, **item})
    if isinstance(item, tuple | list):
        return function(*item, **constants)
    raise TypeError(f"starmap takes tuples and mappings, not {item!r}: use map() for single objects")


def bind_call(call: Callable[..., Any], function: Any, constants: Mapping[str, Any]) -> Callable[[Any], Any]:
    """The call with one object, by the shortest way: an operation says what it comes to in the end."""
    function = getattr(function, "__poolsave_call__", function)
    if call is call_with_object and not constants:
        return function  # type: ignore[no-any-return]
    return partial(call, function, constants)


@dataclass(kw_only=True)
class WorkerJob:
    """What every worker of a run needs to know. Pickled, it holds bytes and plain data, so that a fresh process can
    bring Django up before anything of the user's is restored."""

    function: Any
    call: Callable[[Callable[..., Any], Mapping[str, Any], Any], Any]
    constants: Mapping[str, Any]
    transaction: str | None
    databases: tuple[str, ...]
    retries: int
    timeout: float | None
    noted: bool
    inline: bool
    crosses: bool
    surroundings: DjangoEnvironment | None
    settings: _connections.SettingsByAlias
    queryset: Any = None
    """Where the objects come from if they are primary keys."""
    home: ProcessIdentity = field(default_factory=ProcessIdentity.here)
    turn: threading.Lock | None = None
    held: tuple[object, ...] = ()
    generators: Sequence[object] | None = ()
    """Of random numbers, which a forked worker has to seed; None: the caller has frozen its objects (`gc.freeze`), so
    that each worker has to look for them."""
    carried: CapturedContext | PickledContext | None = None
    hooks: Hooks = field(default_factory=Hooks)
    code: CodeVersion | None = None
    """What the caller has of the function, which other processes import."""
    arithmetic: decimal.Context = field(default_factory=lambda: decimal.getcontext().copy())
    """The caller's precision and rounding, which are context, too."""

    def __getstate__(self) -> dict[str, Any]:
        check_not_from_shell(self.function)
        packed = pickle_function(self.function, self.constants)
        queryset = None if self.queryset is None else Pickled(pack_queryset(self.queryset))
        changed = {"function": Pickled(packed), "constants": {}, "queryset": queryset}
        changed["code"] = CodeVersion.of(self.function)
        return {**self.__dict__, **changed, "turn": None, "held": (), "generators": ()}

    def settle(self, note: int) -> Status:
        """In the caller: ask the database what became of a transaction by what its worker noted."""
        (alias,) = self.databases
        with _connections.outside_event_loop():  # a connection of its own, and nothing waits meanwhile
            return commit_status(note, alias, self.settings[alias])

    @property
    def fork_is_possible(self) -> bool:
        """Whether each open SQLite file can be closed before: it is this thread's, and inside no transaction."""
        if self.surroundings is None:
            return True
        open_files = _connections.open_sqlite_files()
        return not any(one.in_atomic_block for one in open_files) and not _connections.sqlite_is_open_elsewhere()

    @property
    def fork_changes_nothing(self) -> bool:
        """Whether there is nothing that the caller would have to close, also in the middle of a run."""
        return self.surroundings is None or not open_sqlite_descriptors()

    def before_start(self) -> None:
        """Call the caller's hooks."""
        self.hooks.run_before()

    def before_fork(self) -> None:
        """Close SQLite files, hold every connection wrapper, of all threads, so that none is finalised there, and find
        what workers must seed."""
        if self.surroundings is not None:
            _connections.close_sqlite_files()
        if threading.active_count() > 1:
            self.held = pin_connections()
        self.generators = None if gc.get_freeze_count() else find_generators()

    @property
    def preload(self) -> bytes:
        """What a fork server needs to know to set up Django and import the function's module before it forks."""
        return dumps((self.surroundings, getattr(self.function, "__module__", None)))

    def open(self, *, alone: bool = True) -> WorkerSession:
        """Set up a worker in this thread."""
        fresh = self.home.token != PROCESS_TOKEN
        forked = not fresh and self.home.pid != os.getpid()
        stack = ExitStack()
        with stack:  # closed again if anything below raises
            if not self.inline:
                stack.enter_context(decimal.localcontext(self.arithmetic))
            if self.surroundings is not None and not self.inline:
                self._surround(stack, fresh=fresh, forked=forked, alone=alone)
            to_seed = (forked or (fresh and alone)) and not is_seeded()
            if to_seed:
                self.hooks.load()
                reseed_generators(self.generators)
            if fresh or forked:
                self.hooks.run_after()  # which may set seeds of its own
            session = self.session(stack, own_process=fresh or forked)
        if to_seed:  # those of modules that were imported just now
            reseed_generators()
        return session

    def session(self, stack: ExitStack, *, own_process: bool) -> WorkerSession:
        """Restore what is the user's, now that everything is there that it may need."""
        function, constants = self._restored()
        carried = None if self.carried is None else self.carried.opened()
        call = bind_call(self.call, function, constants)
        session = WorkerSession(self, call, self._rows(), stack.pop_all(), own_process=own_process)
        if carried is not None:
            session.carry_along(carried)
        return session

    def _surround(self, stack: ExitStack, *, fresh: bool, forked: bool, alone: bool) -> None:
        assert self.surroundings is not None
        if fresh:
            self.surroundings.set_up()
            if not alone:
                self.surroundings.check_same_settings()
        if fresh or forked:
            discard_inherited_connections(self.held)
        stack.enter_context(self.surroundings.active(fresh=fresh))
        whole_process = alone and (fresh or forked)
        stack.enter_context(_connections.worker_connections(self.settings, whole_process=whole_process))

    def _restored(self) -> tuple[Any, Mapping[str, Any]]:
        if isinstance(self.function, Pickled):
            function, constants = _find_function(self.function)
            if self.code is not None:
                self.code.check(function)
            return function, constants
        return self.function, self.constants

    def _rows(self) -> RowLoader | None:
        if self.queryset is None:
            return None
        return RowLoader(unpack_queryset(self.queryset.data) if isinstance(self.queryset, Pickled) else self.queryset)


def _find_function(packed: Pickled) -> tuple[Any, Mapping[str, Any]]:
    try:
        function, constants = from_wire(packed)
    except AttributeError as error:
        if "_main__'" not in str(error):
            raise
        raise InvalidOperation(
            f"workers that are not forked import the script again, and do not find the function there ({error}): "
            'define it at the top of the script or of a module, not in a shell nor under if __name__ == "__main__":, '
            'or use executor="thread" or start_method="fork"'
        ) from error
    return function, constants
