"""The options: their values and defaults, and how they are resolved.

An explicit argument wins over the environment (`POOLSAVE_EXECUTOR`, `POOLSAVE_WORKERS`), which wins over
`settings.POOLSAVE`, which wins over the defaults.
"""

from __future__ import annotations

import concurrent.futures
import math
import multiprocessing
import os
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

from ._environment.project_settings import ENVIRONMENT, all_settings, from_environment, from_settings, imported
from ._worker.context import Carrier, is_carrier
from ._worker.hooks import Hook
from .durable import LONGEST_NAME, Run
from .errors import InvalidOption
from .executors import EXECUTOR_METHODS, Executor, is_known

__all__ = ["AUTO", "Options", "standing", "wrong_settings"]

AUTO: Literal["auto"] = "auto"
"""The value of `executor` with which the run chooses between the caller's thread and processes, and that of `workers`
with which it chooses their number."""

INLINE: Mapping[str, Any] = {"executor": "serial", "start_method": None, "timeout": None, "throttle": ()}
"""Options that run everything in the caller's own thread, where no timeout can be enforced, and at once."""

MOST_WORKERS = 32
"""Upper bound for `workers="auto"`, unless there are more CPUs."""
MIN_ENDED_FOR_SHARE = 50
"""Objects that must have ended before a `max_failures` that is a fraction applies."""

SEQUENCES = ("databases", "throttle", "carry", "before_fork", "after_fork")
"""Options that are stored as tuples."""


def available_cpus() -> int:
    """Count the CPUs that this process may use, which in a container can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class WorkerRange(NamedTuple):
    """The least and the most workers of a run."""

    least: int
    most: int

    @property
    def is_open(self) -> bool:
        """Whether there is a choice."""
        return self.least < self.most


def worker_range(workers: int | tuple[int, int] | Literal["auto"]) -> WorkerRange:
    """What the option `workers` means: the number to start with, and the largest that there may be."""
    if isinstance(workers, int):
        return WorkerRange(workers, workers)
    if workers == AUTO:
        cpus = available_cpus()
        return WorkerRange(cpus, max(cpus, MOST_WORKERS))
    return WorkerRange(*workers)


def max_failures_reached(limit: float | None, failed: int, ended: int) -> bool:
    """What the option `max_failures` means: whether more objects have failed than it allows."""
    if limit is None or not failed:
        return False
    if isinstance(limit, int):
        return failed >= limit
    return ended >= MIN_ENDED_FOR_SHARE and failed >= limit * ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """All options of a run. A value that cannot work is refused at once, with an error that names it.

    Example:
        >>> Options(workers=4).using(chunksize=50).chunksize
        50
        >>> Options(workers=0)
        Traceback (most recent call last):
        ...
        poolsave.errors.InvalidOption: workers=0 is not valid: give a whole number from 1, (least, most) or "auto"
    """

    workers: int | tuple[int, int] | Literal["auto"] = AUTO
    """How many run at once. "auto": start with the CPUs that this process may use, and have up to 32 while these leave
    CPUs unused, since they wait for a server, and more make the run faster; fewer where the server has too much to do.
    `(least, most)`: the same between these. With Dask "auto" is as many threads as the cluster has at each moment, or
    at most the most. Other executors that cannot change their number keep the least."""
    chunksize: int | Literal["auto"] = "auto"
    """Objects per dispatch; "auto" adapts by the time that objects take in the worker: a chunk takes about 75 ms, with
    `batch_writes` 300 ms, and with Dask a second."""
    executor: str | Executor | concurrent.futures.Executor = "process"
    """A registered name ("process", "thread", "serial"), a poolsave executor, any PEP 3148 executor instance, or
    "auto": start in the caller's thread, and switch to processes if the remaining work is worth it."""
    start_method: str | None = None
    """"fork", "forkserver" or "spawn"; None takes fork where it is safe, else forkserver, else
    spawn; beside the greenlets of gevent or eventlet it is spawn, and the others are refused."""
    transaction: Literal["object", "chunk"] | None = "object"
    """"object": one transaction per object; "chunk": one per chunk, with a savepoint per object; None: none, the
    function manages its own."""
    databases: tuple[str, ...] = ("default",)
    """The aliases that `transaction` covers."""
    batch_writes: bool = False
    """With `transaction="chunk"` on PostgreSQL: what `save()` inserts and changes, and what many-to-many `add()`
    inserts, is sent later, in one statement for the rows of many objects; outcomes are those of a run without it.
    `save()` returns with the key set, and receivers run in their order, but the server has not accepted the row by
    then. A chunk that it refuses is rolled back and run again in the ordinary way, so that `on_commit` is the place for
    what happens outside the database."""
    retries: int = 3
    """Further tries of an object after a transient database error, if the failed try was rolled back."""
    timeout: float | None = None
    """Seconds for one object, from its own start; only for executors that can end an object from outside."""
    max_failures: int | float | None = None
    """Feed no more objects after that many failures (int), or that share of failures (float, once 50 have ended)."""
    on_failure: Literal["collect", "raise"] = "collect"
    """What happens at the end of a run with failures; `concurrent_saves` defaults to "raise"."""
    keep: Literal["values", "all", "failures"] = "values"
    """What a Report holds besides counts and failures: values, values and items, or nothing (memory grows
    with failures only)."""
    window: int | None = None
    """Most objects in flight; None: enough to keep the workers busy, at most four chunks per worker."""
    key: Callable[[Any], Hashable] | None = None
    """Objects for which it gives the same key run one after the other, in input order. It is called in the caller,
    with the object; one for which it raises has failed, and so has one whose key has no hash."""
    run: str | Run | None = None
    """The name of a durable run, which goes on where it stopped: see `poolsave.Run`. For `map` and `RunPooled`."""
    resolve_lost: bool | None = None
    """Note transaction ids, so that PostgreSQL can say after a crash what was committed. It takes one query per
    transaction; None: only with one transaction per chunk."""
    throttle: tuple[Callable[[], Any], ...] = ()
    """What slows the run down while others need the database: `poolsave.throttles`, and callables that give None, a
    share of the workers from 0.0 to 1.0, or a share and a reason. The least share rules. They are asked in the caller,
    at most once a second, before chunks are sent."""
    patience: float | None = 600.0
    """Seconds for which throttles may let nothing start before a durable run pauses (`stop_code` "throttle"); None: it
    waits, as every other run does."""
    progress: bool | Callable[..., object] | None = None
    """True, False, a callable that gets `(done, total)` and, if it takes that, `failed`, or a tqdm-like class; None: a
    bar if stderr is a terminal. Elsewhere True gives a line every 30 seconds at most, as objects end, in the log
    `poolsave` or on stderr."""

    carry: tuple[ContextVar[Any] | Carrier, ...] = ()
    """Context that is restored around every object: ContextVars, and objects with `capture()` and `restore(state)`."""
    before_fork: tuple[Hook, ...] = ()
    """Called without arguments in the caller, before worker processes are started, also later ones: a replacement, or
    more of them."""
    after_fork: tuple[Hook, ...] = ()
    """Called without arguments in every worker process, by any start method, once before its first object."""

    def __post_init__(self) -> None:
        for name, (accepts, expected) in RULES.items():
            value = getattr(self, name)
            if not accepts(value):
                raise InvalidOption(name, value, expected)
        if self.transaction is not None and not self.databases:
            raise InvalidOption("databases", self.databases, "name at least one alias, or set transaction=None")
        if self.batch_writes and self.transaction != "chunk":
            raise InvalidOption(
                "batch_writes", True, f'rows go together by chunk: set transaction="chunk" (it is {self.transaction!r})'
            )
        for name in SEQUENCES:
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if callable(value) else tuple(value))
        if not isinstance(self.workers, int | str):  # a list, from settings
            object.__setattr__(self, "workers", tuple(self.workers))

    @classmethod
    def names(cls) -> frozenset[str]:
        """All option names."""
        return frozenset(option.name for option in fields(cls))

    @classmethod
    def resolve(cls, explicit: Mapping[str, Any], *, defaults: Mapping[str, Any] | None = None) -> Options:
        """Merge the explicit options over the environment, `settings.POOLSAVE` and the defaults.

        Raises:
            InvalidOption: naming the option, its value and where it came from.
        """
        layers = (
            ("", defaults or {}),
            ("settings.POOLSAVE", imported(from_settings())),
            ("the environment", from_environment()),
            ("", explicit),
        )
        merged: dict[str, Any] = {}
        for source, layer in layers:
            check(layer, source)
            merged.update(layer)
        return cls(**{**merged, **overrides()})

    def using(self, **changes: Any) -> Options:
        """Give a copy with some options changed."""
        return Options(**{**self.as_dict(), **check(changes)})

    def as_dict(self) -> dict[str, Any]:
        """Give the options as keyword arguments: `Options(**options.as_dict()) == options`."""
        return {option.name: getattr(self, option.name) for option in fields(self)}


_inline_requests: list[None] = []
"""One entry for each `force_inline(on=True)` that is still in force. A list, since append and pop are atomic."""


def force_inline(*, on: bool) -> None:
    """Switch `INLINE` on for every run, or off again; it stays on until each switch-on is switched off."""
    if on:
        _inline_requests.append(None)
    else:
        _inline_requests.pop()


def overrides() -> Mapping[str, Any]:
    """The options that win over all others."""
    return INLINE if _inline_requests else {}


def standing() -> tuple[Any, ...]:
    """Give everything that options depend on besides explicit ones, to notice a change."""
    return *map(os.environ.get, ENVIRONMENT.values()), dict(all_settings()), overrides()


def check(options: Mapping[str, Any], source: str = "") -> Mapping[str, Any]:
    """Refuse unknown names and values that cannot work.

    Raises:
        InvalidOption: naming the option, its value and its source.
    """
    for name, value in options.items():
        if name == "run" and source:
            raise InvalidOption(
                name, value, "each durable run has a name of its own; give it where it is started", source
            )
        if name not in RULES:
            from difflib import get_close_matches  # imported only for an error

            near = "".join(f"did you mean {match}=? " for match in get_close_matches(name, RULES, 1))
            raise InvalidOption(name, value, f"{near}there is no such option, only {', '.join(sorted(RULES))}", source)
        accepts, expected = RULES[name]
        if not accepts(value):
            raise InvalidOption(name, value, expected, source)
    return options


def wrong_settings() -> Iterator[InvalidOption]:
    """Give an error for each option in the environment and `settings.POOLSAVE` that `Options.resolve` refuses."""
    try:
        layers = {"settings.POOLSAVE": from_settings(), "the environment": from_environment()}
    except InvalidOption as error:
        yield error
        return
    for source, layer in layers.items():
        for name, value in layer.items():
            try:
                check(imported({name: value}), source)
            except InvalidOption as error:
                yield error


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _are_workers(value: object) -> bool:
    if isinstance(value, tuple | list):
        return len(value) == 2 and all(_whole(number, 1) for number in value) and value[0] <= value[1]
    return _whole(value, 1) or (isinstance(value, str) and value == AUTO)


def _is_executor(value: object) -> bool:
    if isinstance(value, str):
        return value == AUTO or is_known(value)
    if isinstance(value, type):
        return False
    return isinstance(value, concurrent.futures.Executor) or all(hasattr(value, name) for name in EXECUTOR_METHODS)


def _is_start_method(value: object) -> bool:
    return value is None or value in multiprocessing.get_all_start_methods()


def _are_aliases(value: object) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(alias, str) for alias in value)


def _are_hooks(value: object) -> bool:
    return callable(value) or (isinstance(value, tuple | list) and all(map(callable, value)))


def _are_throttles(value: object) -> bool:
    values = value if isinstance(value, tuple | list) else (value,)
    return all(callable(throttle) and not isinstance(throttle, type) for throttle in values)


def _are_carriers(value: object) -> bool:
    return isinstance(value, tuple | list) and all(map(is_carrier, value))


def _is_limit(value: object) -> bool:
    return value is None or _whole(value, 1) or (isinstance(value, float) and 0 < value <= 1)


def _is_duration(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf)


def _one_of(*choices: object) -> tuple[Callable[[object], bool], str]:
    return (lambda value: any(value is c or (isinstance(value, str) and value == c) for c in choices)), (
        f"choose one of {', '.join(map(repr, choices))}"
    )


RULES: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "workers": (_are_workers, 'give a whole number from 1, (least, most) or "auto"'),
    "chunksize": (lambda value: value == "auto" or _whole(value, 1), 'give "auto" or a whole number from 1'),
    "executor": (
        _is_executor,
        'give "process", "thread", "serial", "auto", "dask", another registered name, '
        "an instance of a poolsave or concurrent.futures executor, or poolsave.executors.DaskExecutor(client)",
    ),
    "start_method": (_is_start_method, 'give "fork", "forkserver", "spawn" (as the platform has them) or None'),
    "transaction": _one_of("object", "chunk", None),
    "databases": (_are_aliases, "give a tuple of database aliases"),
    "batch_writes": (lambda value: isinstance(value, bool), "give True or False"),
    "retries": (lambda value: _whole(value, 0), "give a whole number from 0"),
    "timeout": (_is_duration, "give seconds above 0, or None"),
    "max_failures": (_is_limit, "give a whole number from 1, a share above 0.0 and up to 1.0, or None"),
    "on_failure": _one_of("collect", "raise"),
    "keep": _one_of("values", "all", "failures"),
    "window": (lambda value: value is None or _whole(value, 1), "give a whole number from 1, or None"),
    "key": (lambda value: value is None or callable(value), "give a callable that takes an object, or None"),
    "run": (
        lambda value: (
            value is None or isinstance(value, Run) or (isinstance(value, str) and 0 < len(value) <= LONGEST_NAME)
        ),
        f"give the name of a durable run, of 1 to {LONGEST_NAME} characters, or poolsave.Run(name, ...)",
    ),
    "resolve_lost": _one_of(True, False, None),
    "throttle": (
        _are_throttles,
        'give a list such as [ReplicaLag("replica"), Pace(500)], '
        "or with callables that give None, a share from 0.0 to 1.0, or a share and a reason",
    ),
    "patience": (_is_duration, "give seconds above 0, or None"),
    "progress": (
        lambda value: value is None or isinstance(value, bool) or callable(value),
        "give True, False, None, a callable or a tqdm-like class",
    ),
    "carry": (_are_carriers, "give a tuple of ContextVars and of objects with capture() and restore(state)"),
    "before_fork": (_are_hooks, "give a callable or a tuple of callables that take no arguments"),
    "after_fork": (_are_hooks, "give a callable or a tuple of callables that take no arguments"),
}
