"""What can be started by name: operations that an app registers in its `backfills.py`, by `@poolsave.backfill`.

The command, the admin and tasks start and go on with runs by name, and find here what to run. No models are imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from django.forms.widgets import MultiWidget
from django.utils.datastructures import MultiValueDict
from django.utils.module_loading import autodiscover_modules

from ..durable import LONGEST_NAME
from ..durable import Run as RunSpec
from ..errors import InvalidOperation, InvalidParameters, UnknownBackfill

if TYPE_CHECKING:
    from django.db.models import Model, QuerySet
    from django.forms import BaseForm
    from django.forms.boundfield import BoundField

    from .models import Run

__all__ = ["Backfill", "backfill", "backfills", "find_backfill"]

Operation = TypeVar("Operation", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Backfill:
    """An operation with its rows, under a name."""

    name: str
    operation: Any
    """The pooled operation."""
    queryset: Any
    """A queryset or manager; or a function that gives one: of the form's cleaned data, or of nothing without a form."""
    form: type[BaseForm] | None = None
    """Checks the parameters."""

    @property
    def model(self) -> type[Model]:
        """The model of its rows.

        Raises:
            InvalidOperation: if only parameters say which rows it has.
        """
        if self.form is not None and not hasattr(self.queryset, "model"):
            raise InvalidOperation(
                f'the rows of the backfill {self.name!r} depend on its parameters: give model="app_label.Model"'
            )
        found: type[Model] = self._rows_of({}).model
        return found

    def cleaned(self, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Give the form's cleaned data.

        Args:
            parameters: as a form is given them: texts by name, or lists of texts.

        Raises:
            InvalidParameters: with the form's texts; or for any parameter if there is no form.
        """
        given = dict(parameters or {})
        if self.form is None:
            if given:
                raise InvalidParameters(self.name, {key: ["It takes no parameters."] for key in given})
            return {}
        form = self.form(_form_data(given))
        advice = [f"Give one of {', '.join(form.fields)}."]
        errors = {key: advice for key in given if not belongs(key, form)}
        if not errors and not form.is_valid():
            errors = {field: [str(text) for text in texts] for field, texts in form.errors.items()}
        if errors:
            raise InvalidParameters(self.name, errors)
        return form.cleaned_data

    def defaults(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Give the form's initial values, as a browser would send them, of the fields that are not given."""
        if self.form is None:
            return {}
        form = self.form()
        missing = [name for name in form.fields if not any(belongs_to(key, name) for key in parameters)]
        values = {name: _as_sent(form[name]) for name in missing}
        return {name: value for name, value in values.items() if value not in (None, "", [])}

    def rows(self, parameters: Mapping[str, Any] | None = None) -> QuerySet[Any]:
        """Give the rows of a run with these parameters.

        Raises:
            InvalidParameters: as `cleaned`.
        """
        return self._rows_of(self.cleaned(parameters))

    def run(self, run: Run, *, slice: float | None = None, only_due: bool = False, **options: Any) -> Any:  # noqa: A002
        """Start the run of a row of the ledger, or go on with it, here and now, and give its report.

        Args:
            run: as it was read from a database.
            slice: seconds after which the session ends; the run is paused then, with "slice".
            only_due: refuse it unless it is due, since someone may have paused it a moment ago.
            options: those of the operation, in place of its own.

        Raises:
            InvalidParameters: as `cleaned`.
            StatusConflict: with `only_due`, if it is not.
            PoolsaveError: what `map` raises; RunBusy if a live process works on it.
        """
        cleaned = self.cleaned(run.parameters)
        spec = RunSpec(run.name, using=run._state.db, slice=slice, only_due=only_due)
        operation = self._bound(cleaned).using(**{"keep": "failures", **options, "run": spec})
        return operation.map(self._rows_of(cleaned))

    def _rows_of(self, cleaned: dict[str, Any]) -> QuerySet[Any]:
        rows: Any = self.queryset
        if not hasattr(rows, "all") and callable(rows):
            rows = rows() if self.form is None else rows(cleaned)
        if not hasattr(rows, "all"):
            raise InvalidOperation(f"the queryset of the backfill {self.name!r} is {rows!r}: let it give a queryset")
        found: Any = rows
        result: QuerySet[Any] = found.all()
        return result

    def _bound(self, cleaned: dict[str, Any]) -> Any:
        """Bind the parameters that the function names, besides the row."""
        _row, *named = inspect.signature(self.operation.func).parameters
        constants = {name: cleaned[name] for name in named if name in cleaned}
        return self.operation.bind(**constants) if constants else self.operation


_registered: dict[str, Backfill] = {}


def backfill(name: str, *, queryset: Any, form: type[BaseForm] | None = None) -> Callable[[Operation], Operation]:
    """Register a pooled operation with its rows, so that `manage.py poolsave` and the admin start it by its name.

    Write it above `@pooled_operation`, in the `backfills.py` of an app::

        @backfill("articles-slug", queryset=Article.objects.filter(slug=""))
        @pooled_operation(workers=4)
        def fill_slug(article):
            article.save()

    Args:
        name: of the backfill and of its run, up to 200 characters.
        queryset: the rows; or a function that gives them, called in each session, with the form's cleaned data if there
            is a form.
        form: a form for parameters. Those that the function names, besides the row, are bound.

    Raises:
        InvalidOperation: for what is no pooled operation, and for a name that is taken or cannot be one.
    """
    _check_name(name)

    def register(operation: Operation) -> Operation:
        if not hasattr(operation, "__poolsave_spec__"):
            raise InvalidOperation(
                f"the backfill {name!r} is {operation!r}: write @backfill above @pooled_operation, over one function"
            )
        taken = _registered.get(name)
        if taken is not None and _place(taken.operation) != _place(operation):
            places = f"{_place(taken.operation)} and {_place(operation)}"
            raise InvalidOperation(f"two backfills have the name {name!r}, {places}: rename one of them")
        _registered[name] = Backfill(name=name, operation=operation, queryset=queryset, form=form)
        return operation

    return register


def backfills() -> dict[str, Backfill]:
    """Import `backfills.py` of all installed apps, and give what they register, by name."""
    autodiscover_modules("backfills")
    return dict(sorted(_registered.items()))


def find_backfill(name: str) -> Backfill:
    """Give a registered backfill.

    Raises:
        UnknownBackfill: naming those that there are.
    """
    known = backfills()
    if name not in known:
        raise UnknownBackfill(name, tuple(known))
    return known[name]


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
        raise InvalidOperation(
            f"a backfill cannot have the name {name!r}: give 1 to {LONGEST_NAME} printable characters"
        )


def _place(operation: Any) -> str:
    return f"{operation.__module__}.{operation.__qualname__}"


def _form_data(parameters: Mapping[str, Any]) -> MultiValueDict[str, Any]:
    return MultiValueDict({key: value if isinstance(value, list) else [value] for key, value in parameters.items()})


def belongs(key: str, form: BaseForm) -> bool:
    """Whether a key is a field's, or a part of a field whose widget has several, such as "since_0"."""
    return any(belongs_to(key, field) for field in form.fields)


def belongs_to(key: str, field: str) -> bool:
    """Whether a key is that field's, or of a part of it."""
    return key == field or key.startswith(f"{field}_")


def _as_sent(field: BoundField) -> str | list[str] | None:
    value, widget = field.value(), field.field.widget
    if isinstance(widget, MultiWidget):  # its parts have names of their own, and a person fills them in
        return None
    if isinstance(value, bool):
        return "on" if value else None
    shown = widget.format_value(value)
    if isinstance(shown, list | tuple):
        texts = [str(each) for each in shown if each not in (None, "")]
        return texts if getattr(widget, "allow_multiple_selected", False) else "".join(texts[:1])
    return None if shown is None else str(shown)
