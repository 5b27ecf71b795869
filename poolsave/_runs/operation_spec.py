"""What a run does with each object, and how: the form in which operations are handed to runs, blocks and pipelines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from django.db.models import QuerySet
from django.db.models.base import ModelBase
from django.db.models.manager import BaseManager

from .._db.connections import configured_aliases
from .._engine.sources import IterableSource, RangeSource
from .._environment.django_setup import DjangoEnvironment
from .._worker.job import call_spread, call_with_object
from ..errors import InvalidOperation
from ..options import Options
from .querysets import QuerySetSource

Call: TypeAlias = Callable[[Callable[..., Any], Mapping[str, Any], Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationSpec:
    """One operation: all of a plain run, or one stage of a pipeline."""

    function: Any
    """What workers call. They inherit it, or find it by its name."""
    options: Options
    name: str = ""
    call: Call = call_with_object
    """How an object becomes arguments."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments, which are sent once to every worker."""
    explicit: Mapping[str, Any] = field(default_factory=dict)
    """The options that the operation itself names."""
    expands: bool = False
    """Whether each of its values is a list whose elements go on by themselves in a pipeline."""
    queryset: QuerySet[Any] | None = None
    """Where the objects come from if they are primary keys."""

    def over(self, objects: object) -> OperationSpec:
        """Give the spec for these objects, whose rows workers fetch if they are a queryset."""
        queryset = None if self.call is call_spread else as_queryset(objects)
        return self if queryset is None else replace(self, queryset=queryset)

    @property
    def covered(self) -> tuple[str, ...]:
        """The aliases on which poolsave opens transactions."""
        return self.options.databases if self.options.transaction is not None else ()

    @property
    def needed(self) -> tuple[str, ...]:
        """The databases without which nothing can be done: those of the transactions, and of the queryset."""
        read: Iterable[str] = () if self.queryset is None else (self.queryset.db,)
        return configured_aliases(dict.fromkeys((*self.covered, *read)))

    @property
    def aliases(self) -> tuple[str, ...]:
        """The aliases on which the caller must be inside no transaction while workers run."""
        if not DjangoEnvironment.has_settings():
            return ()
        read: Iterable[str] = () if self.queryset is None else (self.queryset.db,)
        return configured_aliases(dict.fromkeys((*self.options.databases, *read)))


def source_of(objects: Iterable[Any], queryset: QuerySet[Any] | None) -> IterableSource:
    """Make the source of a run: of `queryset`, if there is one, else of `objects`."""
    if queryset is not None:
        return QuerySetSource(queryset)
    return RangeSource(objects) if isinstance(objects, range) else IterableSource(objects)


def as_queryset(objects: object) -> QuerySet[Any] | None:
    """The queryset, if the objects are one (or a manager), on the database that a router chooses for it now.

    Raises:
        InvalidOperation: if they are a model class, whose rows are meant.
    """
    if isinstance(objects, ModelBase):
        name = objects.__name__
        raise InvalidOperation(f"the model {name} itself cannot be mapped: give its rows, such as {name}.objects.all()")
    queryset = objects.all() if isinstance(objects, BaseManager) else objects
    return queryset.using(queryset.db) if isinstance(queryset, QuerySet) else None
