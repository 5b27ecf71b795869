"""The job: what every worker of a run needs, and how a thread or process is set up from it.

The caller builds it (`_runs.preparation`), executors pass it on and call `open`.
"""

from __future__ import annotations

import decimal
import os
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from .._db import connections as _connections
from .._db import fork_safety as _fork_safety
from .._db.commit_status import commit_status
from .._db.inspection import check_has_slots, room_for_workers
from .._environment.django_setup import DjangoEnvironment
from .._environment.random_generators import find_before_fork, is_seeded, reseed_generators
from .._pickling.code import CodeVersion
from .._pickling.values import Pickled, check_in_script, from_wire, pickle_function
from .._runtime.redacted import dumps
from ..errors import InvalidOperation
from ..outcomes import Status
from .context import CapturedContext, PickledContext
from .hooks import Hooks
from .modes.transaction_modes import MODES, BatchedTransactionPerChunk, WithoutTransaction
from .recording import RecorderSpec
from .rows import RowLoader, pack_queryset, unpack_queryset
from .session import WorkerSession

PROCESS_TOKEN = secrets.token_hex(8)
"""The same in all forks of a process, different in each process that was started afresh, also on another machine."""


class ProcessIdentity(NamedTuple):
    """Identifies the caller's process."""

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
    """Bind function and constants into a one-argument callable, unwrapping PooledOperation."""
    function = getattr(function, "__poolsave_call__", function)
    if call is call_with_object and not constants:
        return function  # type: ignore[no-any-return]
    return partial(call, function, constants)


@dataclass(kw_only=True)
class WorkerJob:
    """What every worker of a run needs. Pickled, it holds bytes and plain data only, so that a fresh process can set
    Django up before it unpickles anything of the user's."""

    function: Any
    call: Callable[[Callable[..., Any], Mapping[str, Any], Any], Any]
    constants: Mapping[str, Any]
    transaction: str | None
    databases: tuple[str, ...]
    retries: int
    timeout: float | None
    noted: bool
    batch_writes: bool = False
    inline: bool
    crosses: bool
    environment: DjangoEnvironment | None
    settings: _connections.SettingsByAlias
    queryset: Any = None
    """The queryset whose rows are the objects, if the items are primary keys."""
    caller: ProcessIdentity | None = None
    """None with `inline`."""
    callers: Sequence[Any] = ()
    """The caller's connection wrappers, which threads must not use."""
    serial_lock: threading.Lock | None = None
    pinned: tuple[object, ...] = ()
    generators: Sequence[object] | None = ()
    """Generators of random numbers that a forked worker has to seed. None: the caller has frozen its objects
    (`gc.freeze`), so each worker has to look for them."""
    context: CapturedContext | PickledContext | None = None
    hooks: Hooks | None = None
    recorder: RecorderSpec | None = None
    """Of a durable run: what each worker writes into its ledger."""
    sparse: bool = False
    """Whether the keys of a chunk are not all that the queryset has between the first and the last of them."""
    counts_cpu: bool = False
    """Whether workers say how long they have needed a CPU: the engine asks for it if their number may change."""
    code: CodeVersion | None = None
    """The version of the function's code in the caller. Other processes import their own."""
    decimal_context: decimal.Context | None = None
    """The caller's decimal precision and rounding; None with `inline`."""

    def __getstate__(self) -> dict[str, Any]:
        check_in_script(self.function)
        self._check_apps_are_ready()
        pickled = pickle_function(self.function, self.constants)
        queryset = None if self.queryset is None else Pickled(pack_queryset(self.queryset))
        changed = {"function": Pickled(pickled), "constants": {}, "queryset": queryset}
        changed["code"] = CodeVersion.of(self.function)
        return {**self.__dict__, **changed, "serial_lock": None, "callers": (), "pinned": (), "generators": ()}

    def _check_apps_are_ready(self) -> None:
        if self.transaction is not None and self.environment is not None and not self.environment.apps_ready:
            raise InvalidOperation(
                "Django's apps are not ready in the caller, so that a worker process would not load them: start the "
                'run after django.setup() and not in AppConfig.ready(), or use executor="thread" or "serial"'
            )

    def settle(self, note: int) -> Status:
        """In the caller: ask the database what became of a transaction, by the number that its worker noted."""
        (alias,) = self.databases
        with _connections.outside_event_loop():  # a separate connection, and no event loop task waits meanwhile
            return commit_status(note, alias, self.settings[alias])

    @property
    def fork_is_possible(self) -> bool:
        """Whether a fork can close each open SQLite file first: this thread opened it, and no transaction is open."""
        return self.environment is None or _fork_safety.can_close_sqlite_files()

    @property
    def fork_changes_nothing(self) -> bool:
        """Whether the caller has no SQLite file to close before a fork, even in the middle of a run."""
        return self.environment is None or not _fork_safety.open_sqlite_descriptors()

    def capture_context(self) -> None:
        """In the caller: capture the context that all objects run in. Each call of a block brings its own instead."""
        if isinstance(self.context, CapturedContext):
            self.context = self.context.captured()

    def before_start(self) -> None:
        """Call the caller's hooks."""
        if self.hooks is not None:
            self.hooks.run_before()

    def before_fork(self) -> None:
        """Close SQLite files, pin the connection wrappers of all threads, and find the generators to seed.

        Pinned wrappers are not finalised in the workers."""
        if self.batch_writes:
            from .._db.write_behind import write_behind  # noqa: F401  else each worker would import it for itself
        if self.environment is not None:
            _fork_safety.close_sqlite_files()
        if threading.active_count() > 1:
            self.pinned = _fork_safety.pin_connections()
        self.generators = find_before_fork()

    @property
    def preload(self) -> bytes:
        """For the fork server: the environment and the function's module, to be set up before it forks."""
        return dumps((self.environment, getattr(self.function, "__module__", None)))

    def room_for_workers(self) -> int | None:
        """In the caller: how many more workers the databases allow now; None if that is not known."""
        if self.environment is None:
            return None
        aliases = [alias for alias in self.databases if alias in self.settings]
        with _connections.outside_event_loop():  # connections of its own
            return room_for_workers(aliases, self.settings)

    def open(self, *, alone: bool = True, added: bool = False) -> WorkerSession:
        """Set up a worker in this thread. `added`: also connect, and raise if a server has no connection left."""
        stack = ExitStack()
        if self.inline:
            return self.session(stack, own_process=False)
        assert self.caller is not None
        fresh = self.caller.token != PROCESS_TOKEN
        forked = not fresh and self.caller.pid != os.getpid()
        must_seed = (forked or (fresh and alone)) and not is_seeded()
        try:
            self._enter(stack, fresh=fresh, forked=forked, alone=alone, must_seed=must_seed)
            if added and self.owns_connections:
                check_has_slots(alias for alias in self.databases if alias in self.settings)
            session = self.session(stack, own_process=fresh or forked)
        except BaseException:
            stack.close()
            raise
        if must_seed:  # the generators of modules that were imported just now
            reseed_generators()
        return session

    def _enter(self, stack: ExitStack, *, fresh: bool, forked: bool, alone: bool, must_seed: bool) -> None:
        stack.enter_context(decimal.localcontext(self.decimal_context))
        if self.owns_connections:
            self._use_environment(stack, fresh=fresh, forked=forked, alone=alone)
        if must_seed:
            # Before the seeding: the modules of the hooks may have generators of their own.
            if self.hooks is not None:
                self.hooks.load()
            reseed_generators(self.generators)
        if self.hooks is not None and (fresh or forked):
            self.hooks.run_after()  # after the seeding, since hooks may set seeds

    def session(self, stack: ExitStack, *, own_process: bool) -> WorkerSession:
        """Unpickle user code; Django is set up by now. `stack` is closed with the session."""
        function = self.bound_function()
        mode = self.build_mode(function, unpickles=self.crosses, pickles=self.crosses)
        fast_call = function if self._is_bare else None
        recorder = mode.recorder = None if self.recorder is None else self.recorder.open()
        return WorkerSession(self, mode, stack, own_process=own_process, fast_call=fast_call, recorder=recorder)

    def build_mode(self, function: Callable[[Any], Any], *, unpickles: bool, pickles: bool) -> WithoutTransaction:
        """Make what runs the objects. `unpickles`: they come from another process; `pickles`: values go to one."""
        context = None if self.context is None else self.context.restored()
        mode = BatchedTransactionPerChunk if self.batch_writes else MODES[self.transaction]
        return mode(self, function, self._rows(), context, unpickles=unpickles, pickles=pickles)

    @property
    def _is_bare(self) -> bool:
        """Whether nothing is around the function, so that `FastLoop` can run it."""
        around = (self.transaction, self.queryset, self.context, self.serial_lock, self.timeout, self.recorder)
        return around.count(None) == len(around)

    @property
    def owns_connections(self) -> bool:
        """Whether workers have connections of their own, not the caller's."""
        return self.environment is not None and not self.inline

    def _use_environment(self, stack: ExitStack, *, fresh: bool, forked: bool, alone: bool) -> None:
        assert self.environment is not None
        if fresh:
            self.environment.set_up()
            if not alone:
                self.environment.check_same_settings()
        if fresh or forked:
            _fork_safety.discard_inherited_connections(self.pinned)
        stack.enter_context(self.environment.active(fresh=fresh))
        stack.enter_context(_connections.kept_from_other_threads(self.callers))
        whole_process = alone and (fresh or forked)
        stack.enter_context(_connections.worker_connections(self.settings, whole_process=whole_process))

    def bound_function(self) -> Callable[[Any], Any]:
        """Give the function with what is bound to it, as a callable of one argument."""
        function, constants = self.function, self.constants
        if isinstance(function, Pickled):
            function, constants = _unpickle_function(function)
            if self.code is not None:
                self.code.check(function)
        return bind_call(self.call, function, constants)

    def _rows(self) -> RowLoader | None:
        if self.queryset is None:
            return None
        queryset = unpack_queryset(self.queryset.data) if isinstance(self.queryset, Pickled) else self.queryset
        return RowLoader(queryset, sparse=self.sparse)


def _unpickle_function(pickled: Pickled) -> tuple[Any, Mapping[str, Any]]:
    try:
        function, constants = from_wire(pickled)
    except AttributeError as error:
        if "_main__'" not in str(error):
            raise
        raise InvalidOperation(
            f"workers that are not forked import the script again, and do not find the function there ({error}): "
            'define it at the top of the script or of a module, not in a shell nor under if __name__ == "__main__":, '
            'or use executor="thread" or start_method="fork"'
        ) from error
    return function, constants
