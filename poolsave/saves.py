"""`concurrent_saves()`: a block whose workers run saves and calls, with a future for each.

The block has the engine of `map`; `BlockDriver` runs it.
"""

from __future__ import annotations

import concurrent.futures
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from types import FunctionType, TracebackType
from typing import Any, ParamSpec, TypeVar

from django.db import router
from django.db.models import Model, QuerySet

from ._db.connections import configured_aliases
from ._db.sqlite import WholeTables
from ._engine.sources import end_generator
from ._environment.django_setup import Localization
from ._pickling.values import check_in_script, pickle_function
from ._reports.batches import OutcomeBatch
from ._runs.block import BlockDriver
from ._runs.preflight import check_key, check_no_open_transaction, check_queryset, is_forked, is_in_block
from ._runs.preparation import OperationSpec, prepare_early
from ._runs.progress import open_progress
from ._runs.querysets import KeysetPages, as_queryset
from ._runs.signals import InterruptGuard, report_interrupt
from ._runtime.foreign_exceptions import attach_report, class_name_of, is_a
from ._worker.context import CapturedContext
from ._worker.requests import (
    FunctionCall,
    ModelSave,
    PendingCall,
    RefusedSave,
    Request,
    RowCall,
    check_can_wait,
    run_request,
)
from ._worker.rows import RowLoader
from .errors import InsideTransaction, InvalidOperation, InvalidOption
from .options import Options, check
from .pipelines import Pipeline, call_in_block
from .reports import Report

__all__ = ["Saves", "concurrent_saves"]

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound=Model)


class concurrent_saves:  # noqa: N801  a context manager is used like a function
    """Open a pool for a block: `with concurrent_saves(workers=4) as saves: ...`.

    Takes the same options as `@pooled_operation`. Workers are started before the body runs. On a clean exit
    everything is finished first; then OperationsFailed is raised if anything failed, unless `on_failure="collect"`.
    If the body raises, what has not started is skipped, what runs is finished, and the body's exception leaves the
    block unchanged.

    Raises:
        InvalidOption: at once, naming the option and its value.
        SharedMemoryDatabase: when the block is entered.
        DatabaseUnreachable: when the block is entered, or left, if a database is gone in between.
        InsideTransaction: when the block is entered, or a call submitted, inside a transaction.

    Example:
        >>> from poolsave import concurrent_saves
        >>> with concurrent_saves(executor="serial", transaction=None) as saves:
        ...     future = saves.submit(pow, 2, 10)
        >>> future.result(), saves.report.succeeded
        (1024, 1)
    """

    def __init__(self, **options: Any) -> None:
        self._explicit = check(options)
        self._saves: Saves | None = None

    def __enter__(self) -> Saves:
        if self._saves is not None:
            raise RuntimeError("this block was entered before: make a new concurrent_saves() for every with statement")
        try:
            options = Options.resolve(self._explicit, defaults={"on_failure": "raise"})
            # No Ctrl-C between the start of the workers and the body: `__exit__` would not be called.
            with InterruptGuard(lambda: None, at_once=lambda count: count > 1) as interrupts:
                self._saves = Saves(options, self)
            interrupts.raise_if_interrupted()
        except BaseException as error:
            if self._saves is not None:
                self._saves._close(error)
            elif is_a(error, KeyboardInterrupt):
                report_interrupt(error, None)
            raise
        return self._saves

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        saves = self._saves
        assert saves is not None
        try:
            saves._close(error)
        except KeyboardInterrupt as interruption:  # also one that came before signals were counted, or afterwards
            saves._close(interruption)
            raise


class Saves:
    """What `with concurrent_saves() as saves` gives. All methods can be called from any thread."""

    def __init__(self, options: Options, block: concurrent_saves) -> None:
        prepared = prepare_early(OperationSpec(function=None, call=run_request, options=options))
        executor, job, _decided = prepared
        self._options = options
        self._job = job
        self._crosses = not executor.shares_memory
        self._by_name = self._crosses and not is_forked(executor, job)
        self._inline = executor.inline
        self._carried = job.context if isinstance(job.context, CapturedContext) else None
        # None for inline executors: their calls run under the language and time zone of the caller.
        self._localization = None if job.environment is None else job.environment.localization
        self._covered = () if job.environment is None else configured_aliases(options.databases)
        self._pickled_functions: set[Any] = set()
        self._instances = InstanceLocks()
        progress = open_progress(options.progress, lambda: None, "concurrent_saves")
        self._driver = BlockDriver(prepared, options, progress)
        self._block = block  # so that it lives as long as this object does, for callers of __enter__()
        # Ends the workers if the block is collected without having been left: Ctrl-C may come just as __exit__ starts.
        self._safeguard = weakref.finalize(block, self._driver.abandon)
        self._safeguard.atexit = False
        self._driver.start()
        self._reading = ExitStack()  # as long as workers may write; not if they could not be started
        if not self._inline:
            self._reading.enter_context(WholeTables())

    @property
    def report(self) -> Report[Any]:
        """The Report of everything that went through the block; complete when the block has been left."""
        return self._driver.report

    def save(self, obj: M, /, **save_kwargs: Any) -> concurrent.futures.Future[M]:
        """Run `obj.save(**save_kwargs)` in a worker, and give a future of `obj` itself.

        When the future is done, `obj` has its primary key, `_state.db` and `_state.adding` set, as after a `save()`
        here, and knows its files as saved; what else `save()` computes stays in the worker. Processes get the object as
        it is now, threads the object itself. Blocks while the window is full, and while `obj` itself is being saved:
        two saves of one instance come one after the other, as in a loop, and in a callback or a running function, which
        cannot wait, the second one fails. (Two instances of one row are two objects.)

        Raises:
            InvalidOption: if `obj` would be saved on a database that the option `databases` does not cover.
            InvalidOperation: if `obj` is no model instance.
            RuntimeError: if the block has been left.
        """
        if not isinstance(obj, Model):
            raise InvalidOperation(f"save() takes a model instance, not {obj!r}: use submit() for functions")
        self._refuse_uncovered(obj, save_kwargs.get("using"))
        if self._inline:
            return self._send(PendingCall(self._job, ModelSave(obj, save_kwargs))).future
        if not self._instances.enter(obj, wait=not (self._driver.is_inside() or self._driver.forked)):
            return self._send(PendingCall(self._job, RefusedSave(obj))).future
        try:
            call = PendingCall(self._job, ModelSave(obj, save_kwargs))
        except BaseException:
            self._instances.leave(obj)
            raise
        call.future.add_done_callback(lambda _future: self._instances.leave(obj))
        try:
            return self._send(call).future
        except BaseException:
            call.future.cancel()
            raise

    def _refuse_uncovered(self, obj: Model, using: str | None) -> None:
        alias = using or router.db_for_write(type(obj), instance=obj)
        if self._options.transaction is not None and alias not in self._options.databases:
            raise InvalidOption(
                "databases",
                self._options.databases,
                f"{obj!r} would be saved on {alias!r} outside any transaction; add it",
            )

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> concurrent.futures.Future[R]:
        """Call `fn(*args, **kwargs)` in a worker, plain or decorated, and give a future of its value.

        The options of the block count, not those of `fn`. A pipeline is one call, whose value is the list of what came
        out; with `transaction=None` for the block each stage has the transaction that it declares. Blocks while the
        window is full.

        Raises:
            InvalidOperation: if `fn` is no function, or the workers cannot find it by its name.
            InvalidOption: if `fn` is a pipeline whose transactions the block's own would swallow.
            RuntimeError: if the block has been left.
        """
        if not callable(fn):
            raise InvalidOperation(f"submit() takes a function and its arguments, not {fn!r}")
        fn = self._checked_function(fn)
        return self._send(PendingCall(self._job, FunctionCall(fn, args, kwargs))).future

    def map(self, fn: Callable[[Any], R], objects: Iterable[Any]) -> Report[R]:
        """Call `fn` once per object on the block's own workers, and give a Report of just these, when all have ended.

        The block's report counts them, too. `objects` is any iterable, or a queryset: workers fetch each row with
        a query and in the transaction of its own (`PooledOperation.map` fetches many at once).

        Raises:
            InvalidOperation: if the workers cannot find `fn` by its name, or in a callback or function of the block,
                where it could wait for ever.
            BaseException: what `objects` itself raised, after everything that had started is finished, with the Report
                as its attribute `report`.
        """
        check_can_wait(self._job, "saves.map()")
        if isinstance(options := getattr(fn, "options", None), Options):
            check_key(OperationSpec(function=None, options=options))
        fn = self._checked_function(fn)
        queryset = as_queryset(objects)
        results = MapResults(self._options.keep, queryset)
        count = 0
        try:
            for request in _calls(fn, objects) if queryset is None else self._row_calls(fn, queryset):
                self._send(PendingCall(self._job, request, results, count))
                count += 1
        except BaseException as error:  # KeyboardInterrupt, too: submitted calls still end
            if self._driver.forked:
                raise
            if is_a(error, InsideTransaction):
                end_generator(objects)
            if self._inline or not is_in_block(self._covered):  # inside atomic() the calls could wait for its locks
                results.wait(count)
            attach_report(error, results.report)
            raise
        results.wait(count)
        return results.report

    def _row_calls(self, fn: Callable[[Any], Any], queryset: QuerySet[Any]) -> Iterator[Request]:
        check_queryset(queryset, self._options)
        if not self._inline:
            check_no_open_transaction(configured_aliases((queryset.db,)))
        rows = RowLoader(queryset)
        for key in KeysetPages(queryset):
            yield RowCall(fn, rows, key)

    def _checked_function(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Give what the workers call, if they can find it. A pipeline is one call."""
        if isinstance(fn, Pipeline):
            fn = call_in_block(fn, self._options, crosses=self._crosses)
        if self._crosses:
            if self._by_name:
                check_in_script(fn)
            if not isinstance(fn, FunctionType):
                pickle_function(fn)
            elif fn not in self._pickled_functions:  # most calls are of the same few functions
                pickle_function(fn)
                self._pickled_functions.add(fn)
        return fn

    def _send(self, call: PendingCall) -> PendingCall:
        if not self._inline:
            # For each call, too: an atomic() inside the block would hold locks that its own workers wait for.
            check_no_open_transaction(self._covered)
        if self._localization is not None and (current := Localization.now()) != self._localization:
            call.use_localization(current)
        if self._carried is not None:
            call.capture_context(self._carried, crosses=self._crosses)
        if self._crosses:
            call.pickle_now()
        self._driver.submit(call)
        return call

    def _close(self, error: BaseException | None) -> None:
        if self._driver.forked:
            return
        with InterruptGuard(self._driver.interrupt, at_once=lambda _count: False) as interrupts:
            if not self.report.finished:
                self._driver.close(None if error is None else f"the block raised {class_name_of(error)}")
            self._reading.close()
            self._safeguard.detach()  # inside a finalizer Ctrl-C would be ignored
        if error is not None and is_a(error, KeyboardInterrupt):
            report_interrupt(error, self.report)
        elif interrupts.count:
            interruption = interrupts.as_exception()
            attach_report(interruption, self.report)
            raise interruption
        if error is not None:
            return
        if self._driver.fatal is not None:
            attach_report(self._driver.fatal, self.report)
            raise self._driver.fatal
        if self._options.on_failure == "raise":
            self.report.raise_if_failed()


def _calls(fn: Callable[[Any], Any], objects: Iterable[Any]) -> Iterator[Request]:
    for item in objects:
        yield FunctionCall(fn, (item,), {})


class MapResults:
    """Gathers the outcomes of the calls of one `map` into a Report of their own."""

    def __init__(self, keep: str, queryset: QuerySet[Any] | None = None) -> None:
        self.report: Report[Any] = Report(keep=keep, queryset=queryset)
        self._changed = threading.Condition()

    def take(self, batch: OutcomeBatch) -> None:
        with self._changed:
            self.report._add(batch)
            self._changed.notify_all()

    def wait(self, expected: int) -> None:
        """Wait until `expected` calls have ended."""
        with self._changed:
            self._changed.wait_for(lambda: self.report.total >= expected)
        self.report._finish()


class InstanceLocks:
    """A lock for each instance that is being saved; instances are told apart by `is`."""

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def enter(self, instance: object, *, wait: bool) -> bool:
        """Wait until no other save of the instance is under way. False if one is, and there is to be no waiting.

        The caller keeps the instance alive until `leave`. Otherwise another instance could get its id.
        """
        while True:
            lock = self._locks.setdefault(id(instance), threading.Lock())
            if not lock.acquire(blocking=wait):
                return False
            if self._locks.get(id(instance)) is lock:
                return True
            lock.release()  # the save that held it has ended, and removed it

    def leave(self, instance: object) -> None:
        """End the save that entered."""
        self._locks.pop(id(instance)).release()
