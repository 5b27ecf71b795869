"""`@pooled_operation`: an ordinary function that can also run over a pool.

The public entrance. A `Run` does the work; nothing starts here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, Self, TypeVar, overload

from django.core.checks import CheckMessage

from ._runs.checks import as_check_error, check_operation
from ._runs.functions import find, name_of, refuse_arguments, refuse_unsuitable_function
from ._runs.preparation import OperationSpec
from ._runs.run import complete_run, run_of
from ._worker.job import call_spread
from .durable import Run
from .errors import InvalidOperation, InvalidOption
from .options import Options, check, standing
from .outcomes import DROP, Outcome
from .pipelines import A, B, C, Pipeline, Step, joined
from .previews import Preview
from .reports import FIRST_KEPT, Report
from .streams import OutcomeStream

__all__ = ["PooledOperation", "pooled_operation"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class PooledOperation(Generic[P, R]):
    """A function with a pool behind it. Make it with `@pooled_operation`.

    Calling it calls the function, here and now. `map`, `starmap` and `stream` run it over a pool; `one | other` makes a
    Pipeline. It is immutable, holds nothing between runs, and is pickled by its qualified name.
    """

    __wrapped__: Callable[P, R]
    __poolsave_expands__ = False

    def __init__(
        self,
        func: Callable[P, R],
        options: Mapping[str, Any] | None = None,
        constants: Mapping[str, Any] | None = None,
        owner: tuple[Any, ...] = (),
    ) -> None:
        refuse_unsuitable_function(func, expands=self.__poolsave_expands__)
        self._func = func
        self._name = name_of(func)
        self._explicit = dict(check(options or {}))
        self._constants = dict(constants or {})
        self._owner = owner
        self._resolved: tuple[Any, OperationSpec] | None = None
        """What options depend on besides the explicit ones, and what that gives."""
        functools.update_wrapper(self, func)

    @property
    def func(self) -> Callable[P, R]:
        """The function itself."""
        return self._func

    @property
    def options(self) -> Options:
        """The options in force. Explicit ones win over the environment, `settings.POOLSAVE` and the defaults.

        Raises:
            InvalidOption: if the environment or `settings.POOLSAVE` has a value that cannot work.
        """
        return self.__poolsave_spec__().options

    @property
    def __poolsave_call__(self) -> Callable[..., R]:
        func: Callable[..., R] = self._func
        return functools.partial(func, *self._owner, **self._constants) if self._owner or self._constants else func

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function here and now, with what was bound, and without any transaction of poolsave's."""
        func: Callable[..., R] = self._func
        return func(*self._owner, *args, **{**self._constants, **kwargs})

    def map(
        self,
        objects: Iterable[Any],
        *,
        on_outcome: Callable[[Outcome[R]], object] | None = None,
        total: int | None = None,
        run: str | Run | None = None,
    ) -> Report[R]:
        """Call the function once per object, over the pool, and report on every one of them.

        Args:
            objects: any iterable. It is read no further than the window, so a generator may be endless.
            total: how many objects a generator will give, for the bar and progress callables. It spares the count of a
                queryset.
            on_outcome: called here with each Outcome as soon as it is there, those that are skipped included. What it
                raises ends the run: what has started is finished, and further outcomes are in the report only.
            run: the name of a durable run, or a `Run`: it can be stopped anywhere, and goes on exactly there when it is
                mapped again. The option `run`, for short.

        Returns:
            A Report in input order. With `on_failure="collect"` (the default) failures are in it and are not raised.

        Raises:
            InvalidOption, InvalidOperation, InsideTransaction, SharedMemoryDatabase: before anything has started.
            DatabaseUnreachable: before anything has started, or if a database is gone in the middle of the run.
            OperationsFailed: at the end, if something failed and `on_failure="raise"`.
            RunConflict: before anything has started, if a durable run cannot go on with this, or another process works
                on it. LeaseLost: if another process has taken it over meanwhile.
            BaseException: what `objects` raised, KeyboardInterrupt, or what else ends the run. It is raised when what
                had started is finished. It has the Report as its `report` (`vars(error)["report"]` if its class has
                something else under that name).
        """
        operation = self if run is None else self.using(run=run)
        return complete_run(lambda: run_of(operation.__poolsave_spec__(), objects, total=total), on_outcome)

    def starmap(
        self,
        argument_sets: Iterable[tuple[Any, ...] | Mapping[str, Any]],
        *,
        on_outcome: Callable[[Outcome[R]], object] | None = None,
        total: int | None = None,
    ) -> Report[R]:
        """Like `map`, with a tuple of positional arguments or a mapping of keyword arguments per call."""
        return complete_run(
            lambda: run_of(replace(self.__poolsave_spec__(), call=call_spread), argument_sets, total=total), on_outcome
        )

    def stream(self, objects: Iterable[Any], *, ordered: bool = False, total: int | None = None) -> OutcomeStream[R]:
        """Run like `map`, and give each outcome as soon as it is there; `with` closes it, and it has a `report`.

        Memory is bounded: no more than the window is in flight, and nothing is read ahead while the caller does not
        ask for more. Closing the iterator, or leaving it, feeds no more, finishes what runs and stops the pool.

        Args:
            objects: any iterable, also an endless one.
            ordered: give the outcomes in input order; those that are early wait, and count for the window.
            total: as in `map`.

        It raises what `map` raises: this call what is known before anything starts, and `next()` the rest. Inside of
        atomic(), `next()` raises InsideTransaction; outside of it the stream goes on.
        """
        return OutcomeStream(
            lambda: run_of(self.__poolsave_spec__(), objects, total=total, limit=FIRST_KEPT), ordered=ordered
        )

    def dry_run(self, objects: Iterable[Any], samples: int = 20) -> Preview:
        """Try the function on a few objects, and say what would become of every row. Nothing is left in the database.

        The samples run in the caller's thread, one by one, with the real function and its receivers, in one transaction
        over all `databases` that is always rolled back. Each sample has a savepoint: one that fails leaves the others
        as they are, and a later one sees what earlier ones have written. What is deferred to COMMIT is checked at the
        end of each sample. Inside `atomic()` and in a `TestCase` it rolls back to where it began.

        `on_commit` callbacks, Django's mail and `django.tasks` are counted and not run. What else the function does
        outside of the database, such as writing a file or sending a request, really happens. Sequences move on.

        Args:
            objects: what `map` would be given. The first ones are tried, as copies, or themselves if they cannot be
                copied; of a queryset the rows with the lowest keys. Out of an iterator they are taken.
            samples: how many, from 1.

        Returns:
            A Preview, to be printed.

        Raises:
            InvalidOption: for `samples`, with `transaction=None`, for an alias that does not exist, or for a `key` that
                `map` refuses.
            DatabaseUnreachable: if there is no connection to a database, and none can be made.
            InvalidOperation: if the queryset cannot be mapped; or, when everything is rolled back, if the function
                tried what no rollback undoes: to end its transaction, to write to a database that `databases` does not
                name, or to write to a table without transactions. A `commit()` of psycopg2 or sqlite3 themselves is
                noticed only after it has happened.
            DatabaseError: if it has ended the transaction of all samples, such as a deadlock or a lost connection.
        """
        from ._preview.dry_run import dry_run  # no worker needs it

        return dry_run(self, [self.__poolsave_spec__()], objects, samples)

    def check(self, objects: Iterable[Any] | None = None) -> list[CheckMessage]:
        """Say what would go wrong or be slow, without running anything.

        Errors are what `map` would refuse. Warnings are what may go wrong. Databases are asked on new connections,
        which are closed again; SQLite is asked on the caller's, if that is open.

        Args:
            objects: what `map` would be given. The first few of a list or tuple are tried for pickling; no iterator is
                consumed and no queryset evaluated.

        Returns:
            Messages as those of Django's system checks, which print well; an empty list if there is nothing to say.
        """
        try:
            spec = self.__poolsave_spec__().over(objects)
        except (InvalidOption, InvalidOperation) as error:
            return [as_check_error(error)]
        return check_operation(spec, objects, f"{self._func.__module__}.{self._name}")

    def __poolsave_spec__(self) -> OperationSpec:
        layers = standing()
        if self._resolved is None or self._resolved[0] != layers:
            self._resolved = layers, self._resolve()
        return self._resolved[1]

    def _resolve(self) -> OperationSpec:
        return OperationSpec(
            name=self._name.rpartition("<locals>.")[2],
            function=self._bound_function,
            constants=self._constants,
            options=Options.resolve(self._explicit),
            explicit=self._explicit,
            expands=self.__poolsave_expands__,
        )

    @functools.cached_property
    def _bound_function(self) -> Any:
        # An operation, since pickle finds that in the module; without options, since they may not be picklable.
        return type(self)(self._func, owner=self._owner)

    def using(self, **options: Any) -> Self:
        """Give a copy with some options changed; this operation does not change.

        Raises:
            InvalidOption: naming the option and its value.
        """
        return type(self)(self._func, {**self._explicit, **check(options)}, self._constants, self._owner)

    def bind(self, **kwargs: Any) -> PooledOperation[..., R]:
        """Give a copy with keyword arguments bound, which are sent once to every worker and not with every object.

        Raises:
            InvalidOperation: if the function does not take them.
        """
        refuse_arguments(self._func, self._owner, kwargs)
        return type(self)(self._func, self._explicit, {**self._constants, **kwargs}, self._owner)

    @property
    def __poolsave_stages__(self) -> tuple[PooledOperation[..., Any], ...]:
        return (self,)

    if TYPE_CHECKING:

        def _step(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

    def __or__(self: Step[A, B], other: Step[B, C]) -> Pipeline[A, C]:
        """`one | other`: a Pipeline in which each object goes through both."""
        return joined(self, other)

    def __get__(self, instance: Any, owner: type | None = None) -> PooledOperation[..., R]:
        """As a method: bind the instance, which is sent once to every worker."""
        if instance is None:
            return self
        return type(self)(self._func, self._explicit, self._constants, (instance,))

    def __reduce__(self) -> str | tuple[Any, ...]:
        name = self._name
        public = find(self._func.__module__, name)
        if public is self:
            return name
        base = public if isinstance(public, PooledOperation) and public._func is self._func else self._func
        return _restore, (type(self), base, self._explicit, self._constants, self._owner)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in (self._explicit | self._constants).items())
        return f"<PooledOperation {self._func.__module__}.{self._name}({arguments})>"


def _restore(kind: type[PooledOperation[..., Any]], base: Any, *arguments: Any) -> PooledOperation[..., Any]:
    return kind(base.func if isinstance(base, PooledOperation) else base, *arguments)


class ExpandingOperation(PooledOperation[P, list[T]], Generic[P, T]):
    """An operation that gives several values, made by `@pooled_operation(expand=True)`.

    Called or mapped by itself it gives a list. In a pipeline each element goes on by itself.
    """

    __poolsave_expands__ = True

    if TYPE_CHECKING:

        def _step(self, *args: P.args, **kwargs: P.kwargs) -> T: ...  # type: ignore[override]
        def bind(self, **kwargs: Any) -> ExpandingOperation[..., T]: ...

    @property
    def __poolsave_call__(self) -> Callable[..., list[T]]:
        return self

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """Call the function here and now, and give all its values without `DROP`."""
        values: Any = super().__call__(*args, **kwargs)
        return [] if values is DROP else [value for value in values if value is not DROP]


@overload
def pooled_operation(func: Callable[P, R], /) -> PooledOperation[P, R]: ...
@overload
def pooled_operation(
    *, expand: Literal[True], **options: Any
) -> Callable[[Callable[P, Iterable[T]]], ExpandingOperation[P, T]]: ...
@overload
def pooled_operation(
    *, expand: Literal[False] = ..., **options: Any
) -> Callable[[Callable[P, R]], PooledOperation[P, R]]: ...
def pooled_operation(func: Any = None, /, *, expand: bool = False, **options: Any) -> Any:
    """Make a per-object function a pooled operation, with or without options.

    The function stays callable. `options` are those of `poolsave.Options`. They are checked here, and nothing is
    started. With `expand=True` the function gives several values, as a list or generator; in a pipeline each of them
    goes on by itself.

    Raises:
        InvalidOption, InvalidOperation: naming the option and its value, or what no pool can run.

    Example:
        >>> from poolsave import pooled_operation
        >>> @pooled_operation(executor="serial", transaction=None)
        ... def double(number):
        ...     return 2 * number
        >>> double(4)
        8
        >>> double.map([1, 2, 3]).values
        [2, 4, 6]
    """
    check(options)
    decorated = functools.partial(_decorated, ExpandingOperation if expand else PooledOperation, options)
    return decorated if func is None else decorated(func)


def _decorated(kind: type[Any], options: Mapping[str, Any], func: Any) -> Any:
    return func.using(**options) if isinstance(func, kind) else kind(func, options)
