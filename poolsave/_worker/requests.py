"""What a block sends to its workers: requests that each name their own function, and the futures for their results."""

from __future__ import annotations

import concurrent.futures
import pickle
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import lru_cache
from operator import methodcaller
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from django.db.models import FileField, Model

from .._environment.django_setup import Localization
from .._pickling.code import CodeVersion
from .._pickling.files import is_unsaved
from .._pickling.values import dumps
from ..errors import InvalidOperation
from .context import CapturedContext, States, with_states
from .rows import RowLoader
from .session import is_working_for

if TYPE_CHECKING:
    from .._reports.batches import OutcomeBatch

R = TypeVar("R")


class Request(Protocol):
    """A unit of work for a worker."""

    @property
    def item(self) -> Any:
        """The `item` of its Outcome."""
        ...

    def perform(self) -> Any:
        """In the worker: do the work."""
        ...

    def receive(self, value: Any) -> tuple[Any, Any]:
        """In the caller: turn the value of `perform` into the values for the Outcome and for the future."""
        ...


class FunctionCall:
    """`fn(*args, **kwargs)`."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "code": (*CodeVersion.of(self.function),)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        code = state.pop("code")
        self.__dict__.update(state)
        if code != CodeVersion.of(self.function):
            CodeVersion(*code).check(self.function)

    @property
    def item(self) -> Any:
        if len(self.args) == 1 and not self.kwargs:
            return self.args[0]
        return self.args, self.kwargs

    def perform(self) -> Any:
        return self.function(*self.args, **self.kwargs)

    def receive(self, value: Any) -> tuple[Any, Any]:
        return value, value


class ModelSave:
    """`obj.save(**kwargs)`, with the keys and the names of files written back to the caller's own instance."""

    def __init__(self, item: Model, kwargs: Mapping[str, Any]) -> None:
        self.item = item
        self.kwargs = kwargs
        # By getattr: the descriptor turns the assigned value into a FieldFile.
        names = [name for name in _file_names(type(item)) if is_unsaved(item.__dict__.get(name))]
        self.files = {name: getattr(item, name) for name in names}

    def perform(self) -> Any:
        self.item.save(**self.kwargs)
        files = {name: getattr(self.item, name) for name in self.files}
        saved = {name: file.name for name, file in files.items() if not is_unsaved(file)}
        return {name: getattr(self.item, name) for name in _key_names(self.item)}, saved, self.item._state.db

    def receive(self, value: Any) -> tuple[Any, Any]:
        keys, files, alias = value
        for name, key in keys.items():
            setattr(self.item, name, key)
        attributes: dict[str, Any] = vars(self.item)
        for name, stored in files.items():
            # Not by setattr: the descriptor reads an image's size. Skipped if the caller has assigned another file.
            if attributes.get(name) is self.files[name]:
                attributes[name] = stored
        self.item._state.db = alias
        self.item._state.adding = False
        return self.item.pk, self.item


class RefusedSave(ModelSave):
    """A save that cannot wait until another save of the same instance has ended."""

    def __init__(self, item: Model) -> None:
        super().__init__(item, {})

    def perform(self) -> Any:
        raise InvalidOperation(
            f"{self.item!r} is being saved already, and a callback or a running function cannot wait for that: save it "
            "again when the future of the earlier save is done"
        )

    def __reduce__(self) -> Any:
        # It raises: pickled for another process, the call fails before it is sent.
        return self.perform()


@lru_cache(maxsize=256)
def _file_names(model: type[Model]) -> list[str]:
    return [field.attname for field in model._meta.concrete_fields if isinstance(field, FileField)]


def _key_names(item: Model) -> set[str]:
    # Multi-table inheritance: each parent has its own key, and the child holds them all.
    meta: Any = item._meta
    keys = [
        field for options in (meta, *(parent._meta for parent in meta.get_parent_list())) for field in options.pk_fields
    ]
    return {field.attname for field in keys}


class RowCall(FunctionCall):
    """`fn(row)`: fetches the row by its primary key inside the call's own transaction."""

    def __init__(self, function: Callable[..., Any], rows: RowLoader, key: Any) -> None:
        super().__init__(function, (key,), {})
        self.rows = rows

    def perform(self) -> Any:
        return self.function(self.rows.get(self.item))


class LocalizedRequest:
    """Another request, with a language and a time zone of its own."""

    def __init__(self, request: Request, localization: Localization) -> None:
        self.request = request
        self.localization = localization

    @property
    def item(self) -> Any:
        return self.request.item

    def perform(self) -> Any:
        return with_states((_LOCALIZATION,), (self.localization,), methodcaller("perform"), self.request)

    def receive(self, value: Any) -> tuple[Any, Any]:
        return self.request.receive(value)


class _LocalizationCarrier:
    def restore(self, localization: Localization) -> AbstractContextManager[None]:
        return localization.active()


_LOCALIZATION = _LocalizationCarrier()


class BlockFuture(concurrent.futures.Future[R]):
    """A future that refuses to be waited for where the wait could never end."""

    def __init__(self, job: object) -> None:
        super().__init__()
        self._job = job

    def result(self, timeout: float | None = None) -> R:
        """As that of every future.

        Raises:
            InvalidOperation: without a `timeout` in a callback or function of the same block, unless it is done.
        """
        self._check_can_wait(timeout, "future.result()")
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As that of every future; raises as `result` does."""
        self._check_can_wait(timeout, "future.exception()")
        return super().exception(timeout)

    def _check_can_wait(self, timeout: float | None, what: str) -> None:
        if timeout is None and not self.done():
            check_can_wait(self._job, what)


def check_can_wait(job: object, what: str) -> None:
    """Refuse to wait in a thread that has to do the work itself, or may be the last free one.

    Raises:
        InvalidOperation: saying what to do.
    """
    if is_working_for(job):
        raise InvalidOperation(
            f"{what} was called in a callback, or in a function, of the block that it would wait for, and could wait "
            "for ever: use submit(), which does not wait, and add_done_callback() on its future"
        )


class PendingCall:
    """A request with its future. To another process only the request goes, in the state in which it was submitted."""

    def __init__(self, job: object, request: Request, listener: BatchListener | None = None, index: int = 0) -> None:
        self.request = request
        self.listener = listener
        self.index = index
        self.future: BlockFuture[Any] = BlockFuture(job)
        self.cancelled = False
        self.counted = False
        self.states: States | None = None
        self._pickled_states: bytes | None = None
        self._pickled: bytes | Exception = b""

    def capture_context(self, context: CapturedContext, *, crosses: bool) -> None:
        """Capture the present context."""
        self.states = context.capture()
        if crosses:
            self._pickled_states = context.pickle_states(self.states)

    def use_localization(self, localization: Localization) -> None:
        """Run the request with this language and time zone."""
        self.request = LocalizedRequest(self.request, localization)

    def pickle_now(self) -> None:
        """Pickle the request now, in the caller's thread, in its present state."""
        try:
            self._pickled = dumps(self.request)
        except Exception as error:  # whatever the arguments' pickling raises; raised when the call is sent
            self._pickled = error

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self._pickled, Exception):
            raise self._pickled
        if self._pickled_states is None:
            return pickle.loads, (self._pickled,)
        return RequestWithContext, (self._pickled, self._pickled_states)

    def start(self) -> None:
        """The call leaves the queue. From now on its future cannot be cancelled."""
        self.cancelled = not self.future.set_running_or_notify_cancel()
        if self.cancelled:
            # It keeps its place in the chunk, whose objects have been counted, and does nothing there.
            self.request = FunctionCall(_do_nothing, (self.request.item,), {})
            self.states = self._pickled_states = None
            self.pickle_now()

    def perform(self) -> Any:
        """In a worker that shares memory."""
        return self.request.perform()


class RequestWithContext(NamedTuple):
    """A request in another process, with its context. The request is unpickled once the context is in force."""

    request: bytes
    pickled_states: bytes

    @property
    def states(self) -> States:
        return pickle.loads(self.pickled_states)  # type: ignore[no-any-return]

    def perform(self) -> Any:
        request: Request = pickle.loads(self.request)
        return request.perform()


class BatchListener(Protocol):
    """Takes the outcomes of calls that belong together."""

    def take(self, batch: OutcomeBatch) -> None:
        """Take the batch of a call that has ended."""


def run_request(_function: Any, _constants: Mapping[str, Any], item: Any) -> Any:
    """The function of a block's job. `item` is a request, or a `PendingCall` where memory is shared."""
    return item.perform()


def _do_nothing(_item: Any) -> None:
    return None
