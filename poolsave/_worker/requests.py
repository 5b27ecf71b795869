"""What a block sends to its workers: calls that each know their own function, and the futures that wait for them."""

from __future__ import annotations

import concurrent.futures
import pickle
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeVar

from django.db.models import FileField, Model

from .._environment.localization import Localization
from .._pickling.code import CodeVersion
from .._pickling.files import is_unsaved
from .._pickling.values import dumps
from .._reports.batches import OutcomeBatch
from ..errors import InvalidOperation
from .context import CapturedContext, States, with_states
from .rows import RowLoader
from .session import is_working_for

R = TypeVar("R")


class Request(Protocol):
    """Something to do in a worker."""

    @property
    def item(self) -> Any:
        """What to show for it in an Outcome."""
        ...

    def perform(self) -> Any:
        """Do it, in the worker."""
        ...

    def arrive(self, value: Any) -> tuple[Any, Any]:
        """In the caller: take what `perform` gave; gives the values for the Outcome and for the future."""
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

    def arrive(self, value: Any) -> tuple[Any, Any]:
        return value, value


class ModelSave:
    """`obj.save(**kwargs)`, with the keys and the names of files written back to the caller's own instance."""

    def __init__(self, item: Model, kwargs: Mapping[str, Any]) -> None:
        self.item = item
        self.kwargs = kwargs
        self.files = _unsaved_files(item)

    def perform(self) -> Any:
        self.item.save(**self.kwargs)
        files = {name: getattr(self.item, name) for name in self.files}
        saved = {name: file.name for name, file in files.items() if not is_unsaved(file)}
        return {name: getattr(self.item, name) for name in _key_names(self.item)}, saved, self.item._state.db

    def arrive(self, value: Any) -> tuple[Any, Any]:
        keys, files, alias = value
        for name, key in keys.items():
            setattr(self.item, name, key)
        attributes: dict[str, Any] = vars(self.item)
        for name, stored in files.items():
            # Past the descriptor, which reads the size of an image, and unless the caller has put another file there.
            if attributes.get(name) is self.files[name]:
                attributes[name] = stored
        self.item._state.db = alias
        self.item._state.adding = False
        return self.item.pk, self.item


class RefusedSave(ModelSave):
    """One that cannot wait until another save of the same instance has ended."""

    def __init__(self, item: Model) -> None:
        super().__init__(item, {})

    def perform(self) -> Any:
        raise InvalidOperation(
            f"{self.item!r} is being saved already, and a callback or a running function cannot wait for that: save it "
            "again when the future of the earlier save is done"
        )

    def __reduce__(self) -> Any:
        return self.perform()


def _unsaved_files(item: Model) -> dict[str, Any]:
    # By attribute: what was assigned becomes a FieldFile when it is looked at.
    return {name: getattr(item, name) for name in _file_names(type(item)) if is_unsaved(item.__dict__.get(name))}


@lru_cache(maxsize=256)
def _file_names(model: type[Model]) -> list[str]:
    return [field.attname for field in model._meta.concrete_fields if isinstance(field, FileField)]


def _key_names(item: Model) -> set[str]:
    # Multi-table inheritance: every parent has a key of its own, and the child carries them all.
    meta: Any = item._meta
    keys = [field for one in (meta, *(parent._meta for parent in meta.get_parent_list())) for field in one.pk_fields]
    return {field.attname for field in keys}


class RowCall(FunctionCall):
    """`fn(row)`, with the row of a primary key, which is fetched inside the call's own transaction."""

    def __init__(self, function: Callable[..., Any], rows: RowLoader, key: Any) -> None:
        super().__init__(function, (key,), {})
        self.rows = rows

    def perform(self) -> Any:
        return self.function(self.rows.take(self.item))


class LocalizedRequest:
    """Another request, with a language and a time zone of its own."""

    def __init__(self, request: Request, localization: Localization) -> None:
        self.request = request
        self.localization = localization

    @property
    def item(self) -> Any:
        return self.request.item

    def perform(self) -> Any:
        return with_states((_LOCALIZATION,), (self.localization,), _perform, self.request)

    def arrive(self, value: Any) -> tuple[Any, Any]:
        return self.request.arrive(value)


class _LocalizationCarrier:
    def restore(self, localization: Localization) -> AbstractContextManager[None]:
        return localization.active()


_LOCALIZATION = _LocalizationCarrier()


class BlockFuture(concurrent.futures.Future[R]):
    """A future that is not waited for where it could never be done."""

    def __init__(self, job: object) -> None:
        super().__init__()
        self._job = job

    def result(self, timeout: float | None = None) -> R:
        """As that of every future.

        Raises:
            InvalidOperation: without a `timeout` in a callback or function of the same block, unless it is done.
        """
        self._refuse_to_wait(timeout, "future.result()")
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As that of every future; raises as `result` does."""
        self._refuse_to_wait(timeout, "future.exception()")
        return super().exception(timeout)

    def _refuse_to_wait(self, timeout: float | None, what: str) -> None:
        if timeout is None and not self.done():
            refuse_to_wait_inside(self._job, what)


def refuse_to_wait_inside(job: object, what: str) -> None:
    """Refuse what would wait, in the thread that has to do it, or that may be the last free one.

    Raises:
        InvalidOperation: saying what to do.
    """
    if is_working_for(job):
        raise InvalidOperation(
            f"{what} was called in a callback, or in a function, of the block that it would wait for, and could wait "
            "for ever: use submit(), which does not wait, and add_done_callback() on its future"
        )


class PendingCall:
    """A request on its way; where it crosses to another process only the request goes, as it was when submitted."""

    def __init__(self, job: object, request: Request, sink: BatchListener | None = None, place: int = 0) -> None:
        self.request = request
        self.sink = sink
        self.place = place
        self.future: BlockFuture[Any] = BlockFuture(job)
        self.cancelled = False
        self.counted = False
        self.states: States | None = None
        self._packed_states: bytes | None = None
        self._frozen: bytes | Exception = b""

    def take_along(self, carried: CapturedContext, *, crosses: bool) -> None:
        """Capture the context of now."""
        self.states = carried.capture()
        if crosses:
            self._packed_states = carried.pack(self.states)

    def localize(self, localization: Localization) -> None:
        """Have a language and a time zone of its own."""
        self.request = LocalizedRequest(self.request, localization)

    def freeze(self) -> None:
        """Pickle the request now, in the caller's thread, as it is at this moment."""
        try:
            self._frozen = dumps(self.request)
        except Exception as error:  # whatever its arguments' pickling raises: told when the call's turn comes
            self._frozen = error

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self._frozen, Exception):
            raise self._frozen
        if self._packed_states is None:
            return pickle.loads, (self._frozen,)
        return RequestWithContext, (self._frozen, self._packed_states)

    def begin(self) -> None:
        """The call leaves the queue: from here on its future can no longer be cancelled."""
        self.cancelled = not self.future.set_running_or_notify_cancel()
        if self.cancelled:
            self.request = FunctionCall(_do_nothing, (self.request.item,), {})
            self.states = self._packed_states = None
            self.freeze()

    def perform(self) -> Any:
        """In a worker that shares memory."""
        return self.request.perform()


class RequestWithContext(NamedTuple):
    """A request in another process, with its context: the one is restored when the other is in force."""

    request: bytes
    packed_states: bytes

    @property
    def states(self) -> States:
        return pickle.loads(self.packed_states)  # type: ignore[no-any-return]

    def perform(self) -> Any:
        request: Request = pickle.loads(self.request)
        return request.perform()


class BatchListener(Protocol):
    """Takes the ends of calls that belong together."""

    def take(self, batch: OutcomeBatch) -> None:
        """One of the calls has ended."""


def run_request(_function: Any, _constants: Mapping[str, Any], item: Any) -> Any:
    """What the workers of a block run: the request itself, or the call around it where memory is shared."""
    return item.perform()


def _perform(request: Request) -> Any:
    return request.perform()


def _do_nothing(_item: Any) -> None:
    return None
