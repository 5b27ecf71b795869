"""Pipelines: operations one after the other, `clean | enrich | create_user`, each with options of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from django.core.checks import CheckMessage

from ._db.transactions import AttemptResult, CallEnded, run_in_transaction
from ._pickling.values import to_wire
from ._pipelines.planning import options_of_the_run, pipeline_run_of, plan_segments
from ._pipelines.report import PipelineReport
from ._runs.checks import as_check_error, check_operation
from ._runs.functions import takes
from ._runs.preparation import OperationSpec
from ._runs.run import complete_run
from ._worker.job import call_spread
from .errors import InvalidOperation, InvalidOption
from .executors.serial import LocalMarks
from .options import Options, check
from .outcomes import DROP, Outcome, Status
from .previews import Preview
from .reports import FIRST_KEPT
from .streams import PipelineStream

if TYPE_CHECKING:
    from .operations import PooledOperation

__all__ = ["Pipeline", "joined"]

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
Takes_contra = TypeVar("Takes_contra", contravariant=True)
Gives_co = TypeVar("Gives_co", covariant=True)


class Step(Protocol[Takes_contra, Gives_co]):
    """An operation or a pipeline for type checkers: what goes in, and what comes out for the next stage."""

    def _step(self, item: Takes_contra, /) -> Gives_co: ...


class Pipeline(Generic[A, C]):
    """Operations that every object passes one after the other, made by `first | second | third`.

    Each stage keeps its own options: where it runs, and whether in a transaction, which no other stage is inside of.
    Neighbours with the same executor, workers and other options of a worker share workers, so that values need not be
    sent between them. Between other neighbours the window is bounded, so that a slow stage slows those before it, up to
    the input.

    A stage ends an object by returning `DROP`; one that is declared by `@pooled_operation(expand=True)` gives several
    values, each of which goes on by itself. What fails in a stage goes no further: its outcome has the *original*
    object as `item`, its position in the input as `index`, and the stage's name as `stage`. What earlier stages
    have saved stays saved.

    `keep`, `max_failures`, `on_failure` and `progress` are options of a whole run. They are taken from the stages that
    name them, which must not contradict one another; `using` names them for all.
    """

    def __init__(self, operations: Sequence[PooledOperation[..., Any]]) -> None:
        self.__poolsave_stages__ = tuple(operations)
        self.__name__ = self.__qualname__ = " | ".join(spec.name for spec in self._specs())

    def _specs(self) -> list[OperationSpec]:
        return [operation.__poolsave_spec__() for operation in self.__poolsave_stages__]

    def __call__(self, *args: Any, **kwargs: Any) -> list[C]:
        """Call all stages for one object, here and now and without any transaction of poolsave's.

        Returns:
            What came out: nothing if it was dropped, several values if a stage gives several.
        """
        return call_stages(self.__poolsave_stages__, args, kwargs, values_of)

    def map(
        self,
        objects: Iterable[A],
        *,
        on_outcome: Callable[[Outcome[C]], object] | None = None,
        total: int | None = None,
    ) -> PipelineReport[C]:
        """Send every object through all stages, and report on every one of them.

        Args:
            objects: any iterable, or a queryset, whose rows the workers of the first stage fetch.
            on_outcome: as in `PooledOperation.map`.
            total: how many outcomes there will be, for the bar and progress callables.

        Returns:
            A Report in input order, which also has a row per stage (`report.stages`).

        Raises:
            PoolsaveError: what `PooledOperation.map` raises, for any stage, before anything has started.
            OperationsFailed: at the end, if something failed and `on_failure="raise"`.
            BaseException: what `objects` itself raised, and KeyboardInterrupt, both after everything that had started
                is finished, and with the Report as their attribute `report`. What had not started its next stage by
                then is skipped there.
        """
        return complete_run(lambda: pipeline_run_of(self._specs(), objects, self.__name__, total=total), on_outcome)

    def starmap(
        self,
        argument_sets: Iterable[tuple[Any, ...] | Mapping[str, Any]],
        *,
        on_outcome: Callable[[Outcome[C]], object] | None = None,
        total: int | None = None,
    ) -> PipelineReport[C]:
        """Like `map`, with a tuple of positional arguments or a mapping of keyword arguments for the first stage."""
        first, *others = self._specs()
        stages = [replace(first, call=call_spread), *others]
        return complete_run(lambda: pipeline_run_of(stages, argument_sets, self.__name__, total=total), on_outcome)

    def stream(self, objects: Iterable[A], *, ordered: bool = False, total: int | None = None) -> PipelineStream[C]:
        """Run like `map`, and give each outcome as soon as it is there; `with` closes it, and it has a `report`.

        Memory is bounded by the windows of the stages, and nothing is read ahead while the caller does not ask for
        more. Closing the iterator, or leaving it, feeds no more, finishes what runs and stops all workers.

        Args:
            objects: any iterable, also an endless one.
            ordered: give the outcomes in input order, the several values of one object in their order.
            total: as in `map`.

        Raises:
            The same as `map`, which are raised by this call as far as they are known before anything starts.
        """
        return PipelineStream(
            lambda: pipeline_run_of(self._specs(), objects, self.__name__, total=total, limit=FIRST_KEPT),
            ordered=ordered,
        )

    def dry_run(self, objects: Iterable[A], samples: int = 20) -> Preview:
        """Try all stages on a few objects, and say what would become of every row; see `PooledOperation.dry_run`.

        All stages run in one transaction over the `databases` of all of them. A stage with `transaction=None` has a
        savepoint as well. Refused if all stages have `transaction=None`.
        """
        from ._preview.dry_run import dry_run  # no worker needs it

        return dry_run(self, self._specs(), objects, samples)

    def check(self, objects: Iterable[Any] | None = None) -> list[CheckMessage]:
        """Say what would go wrong or be slow, stage by stage, without running anything; see `PooledOperation.check`."""
        try:
            specs = self._specs()
            options_of_the_run(specs)
            first, *others = specs
            first = first.over(objects)
        except (InvalidOption, InvalidOperation) as error:
            return [as_check_error(error)]
        messages = check_operation(first, objects, first.name)
        return messages + [message for spec in others for message in check_operation(spec, None, spec.name)]

    def using(self, **options: Any) -> Pipeline[A, C]:
        """Give a copy with some options changed for all stages; this pipeline does not change.

        Raises:
            InvalidOption: naming the option and its value.
        """
        check(options)
        return Pipeline([operation.using(**options) for operation in self.__poolsave_stages__])

    def bind(self, **kwargs: Any) -> Pipeline[A, C]:
        """Give a copy with keyword arguments bound, each for all stages whose functions take it.

        Raises:
            InvalidOperation: if no stage takes one of them.
        """
        for keyword in kwargs:
            if not any(takes(operation.func, keyword) for operation in self.__poolsave_stages__):
                raise InvalidOperation(f"no stage of {self.__name__} takes a keyword argument {keyword!r}")
        return Pipeline([
            operation.bind(**{name: value for name, value in kwargs.items() if takes(operation.func, name)})
            for operation in self.__poolsave_stages__
        ])  # fmt: skip

    if TYPE_CHECKING:

        def _step(self, item: A, /) -> C: ...

    def __or__(self, other: Step[C, D]) -> Pipeline[A, D]:
        """`one | other`: a Pipeline in which each object goes through the stages of both."""
        return joined(self, other)

    def __eq__(self, other: object) -> bool:
        """Whether the stages are the same: `(a | b) | c == a | (b | c)`."""
        return isinstance(other, Pipeline) and self.__poolsave_stages__ == other.__poolsave_stages__

    def __hash__(self) -> int:
        return hash(self.__poolsave_stages__)

    def __reduce__(self) -> tuple[Any, ...]:
        return Pipeline, (self.__poolsave_stages__,)

    def __repr__(self) -> str:
        segments = [" + ".join(stage.name for stage in segment) for segment in plan_segments(self._specs())]
        return f"<Pipeline {' | '.join(segments)}>"


def call_in_block(pipeline: Pipeline[Any, Any], options: Options, *, crosses: bool) -> StagesAsCall:
    """Give all stages as one call of a block with these options. `crosses`: its value goes to another process.

    Raises:
        InvalidOption: if the transaction of the block would swallow that of a stage.
    """
    stages = pipeline.__poolsave_stages__
    for stage in [operation.__poolsave_spec__() for operation in stages] if options.transaction is not None else ():
        if stage.options.transaction is None or not {*stage.options.databases} <= {*options.databases}:
            raise InvalidOption(
                "transaction",
                options.transaction,
                "this block runs every call in one transaction of its own, which is not what the stage "
                f"{stage.name!r} declares (transaction={stage.options.transaction!r}, databases="
                f"{stage.options.databases!r}): open the block with transaction=None, by which each stage has its "
                "own, or map the pipeline outside of the block",
            )
    return StagesAsCall(stages, transactions=options.transaction is None, crosses=crosses)


class StagesAsCall:
    """A pipeline as a function of one object, for workers that run calls.

    With `transactions` each stage runs in the transaction that it declares. What is known of these afterwards, if that
    is more than a value or an error, is raised as CallEnded.
    """

    def __init__(self, operations: Sequence[PooledOperation[..., Any]], *, transactions: bool, crosses: bool) -> None:
        self._operations = operations
        self._transactions = transactions
        self._crosses = crosses

    def __call__(self, *args: Any, **kwargs: Any) -> list[Any]:
        if not self._transactions:
            return call_stages(self._operations, args, kwargs, values_of)
        flaws: list[BaseException] = []
        values = call_stages(self._operations, args, kwargs, partial(values_in_transaction, flaws))
        if flaws:
            # Not returned but raised, so the value does not pass through what pickles values.
            value = to_wire(values) if self._crosses else values
            raise CallEnded(AttemptResult(Status.SUCCEEDED, value, flaws[0]))
        return values


def call_stages(
    operations: Sequence[PooledOperation[..., Any]],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    run: Callable[[PooledOperation[..., Any], tuple[Any, ...], Mapping[str, Any]], list[Any]],
) -> list[Any]:
    """Call all stages, one after the other."""
    first, *others = operations
    values = run(first, args, kwargs)
    for operation in others:
        values = [after for value in values for after in run(operation, (value,), {})]
    return values


def values_of(operation: PooledOperation[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """Call one stage, and give the values that go on."""
    given = operation(*args, **kwargs)
    if operation.__poolsave_expands__:
        return list(given)
    return [] if given is DROP else [given]


def values_in_transaction(
    flaws: list[BaseException], operation: PooledOperation[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Any]:
    """Do the same in the transaction that the stage declares. `flaws` gets what its `on_commit` callbacks raise.

    Raises:
        CallEnded: if it is unknown whether the transaction was committed.
    """
    call = partial(values_of, operation, args, kwargs)
    options = operation.options
    if options.transaction is None:
        return call()
    attempt = run_in_transaction(call, LocalMarks(), 0, options.databases)
    if attempt.status is Status.LOST:
        raise CallEnded(attempt) from attempt.error
    if attempt.error is not None:
        if attempt.status is Status.FAILED:
            raise attempt.error
        flaws.append(attempt.error)
    values: list[Any] = attempt.value
    return values


def joined(first: Any, second: Any) -> Pipeline[Any, Any]:
    """All stages of two operations or pipelines.

    Raises:
        InvalidOperation: if one of them is neither.
    """
    for operand in (first, second):
        if not hasattr(operand, "__poolsave_stages__"):
            raise InvalidOperation(f"{operand!r} cannot be a stage of a pipeline: decorate it with @pooled_operation")
    return Pipeline([*first.__poolsave_stages__, *second.__poolsave_stages__])
