"""What a block sends to its workers: calls that each know their own function, and the futures that wait for them."""

from __future__ import annotations

import concurrent.futures
import pickle
import secrets
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from django.db.models import Model, QuerySet

from ._batches import Batch
from ._carry import Carried, States
from ._envelopes import dumps
from ._rows import Rows, pack_queryset, unpack_queryset

__all__ = ["Call", "FunctionCall", "ModelSave", "Request", "RowCall", "SharedRows", "Sink", "run_request"]


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
    """`obj.save(**kwargs)`, with the keys written back to the caller's own instance."""

    def __init__(self, item: Model, kwargs: Mapping[str, Any]) -> None:
        self.item = item
        self.kwargs = kwargs

    def perform(self) -> Any:
        self.item.save(**self.kwargs)
        return {name: getattr(self.item, name) for name in _key_names(self.item)}, self.item._state.db

    def arrive(self, value: Any) -> tuple[Any, Any]:
        keys, alias = value
        for name, key in keys.items():
            setattr(self.item, name, key)
        self.item._state.db = alias
        self.item._state.adding = False
        return self.item.pk, self.item


def _key_names(item: Model) -> set[str]:
    # Multi-table inheritance: every parent has a key of its own, and the child carries them all.
    meta: Any = item._meta
    keys = [field for one in (meta, *(parent._meta for parent in meta.get_parent_list())) for field in one.pk_fields]
    return {field.attname for field in keys}


class SharedRows:
    """A queryset that the calls of one `map` have in common; it goes with each, and is restored once per worker."""

    def __init__(self, queryset: QuerySet[Any]) -> None:
        self._queryset: QuerySet[Any] | None = queryset
        self._packed: bytes | None = None
        self._token = secrets.token_bytes(8)

    def __getstate__(self) -> tuple[bytes, bytes]:
        if self._packed is None:
            assert self._queryset is not None
            self._packed = pack_queryset(self._queryset)
        return self._packed, self._token

    def __setstate__(self, state: tuple[bytes, bytes]) -> None:
        self._queryset = None
        self._packed, self._token = state

    def here(self) -> Rows:
        """The rows as this worker finds them."""
        if getattr(_in_hand, "token", None) != self._token:
            if self._queryset is None:
                assert self._packed is not None
                self._queryset = unpack_queryset(self._packed)
            _in_hand.token = self._token
            _in_hand.rows = Rows(self._queryset)
        rows: Rows = _in_hand.rows
        return rows


_in_hand = threading.local()


class RowCall:
    """`fn(row)`, with the row of a primary key, which is fetched inside the call's own transaction."""

    def __init__(self, function: Callable[..., Any], rows: SharedRows, item: Any) -> None:
        self.function = function
        self.rows = rows
        self.item = item

    def perform(self) -> Any:
        return self.function(self.rows.here().take(self.item))

    def arrive(self, value: Any) -> tuple[Any, Any]:
        return value, value


class Call:
    """A request on its way; where it crosses to another process only the request goes, as it was when submitted."""

    def __init__(self, request: Request, sink: Sink | None = None, place: int = 0) -> None:
        self.request = request
        self.sink = sink
        self.place = place
        self.future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self.cancelled = False
        self.counted = False
        self.states: States | None = None
        self._packed_states: bytes | None = None
        self._frozen: bytes | Exception = b""

    def take_along(self, carried: Carried, *, crosses: bool) -> None:
        """Capture the context of now."""
        self.states = carried.capture()
        if crosses:
            self._packed_states = carried.pack(self.states)

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
        return LadenRequest, (self._frozen, self._packed_states)

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


class LadenRequest(NamedTuple):
    """A request in another process, with its context: the one is restored when the other is in force."""

    request: bytes
    packed_states: bytes

    @property
    def states(self) -> States:
        return pickle.loads(self.packed_states)  # type: ignore[no-any-return]

    def perform(self) -> Any:
        request: Request = pickle.loads(self.request)
        return request.perform()


class Sink(Protocol):
    """Takes the ends of calls that belong together."""

    def take(self, batch: Batch) -> None:
        """One of the calls has ended."""


def run_request(_function: Any, _constants: Mapping[str, Any], item: Any) -> Any:
    """What the workers of a block run: the request itself, or the call around it where memory is shared."""
    return item.perform()


def _do_nothing(_item: Any) -> None:
    return None
