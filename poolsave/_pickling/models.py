"""Pickles the historical models of a migration.

A migration's `apps.get_model()` makes a class with the columns of that point in the history. Pickle refers to models
and fields by name, and would restore the current ones. Here they are pickled as names in the migration's state,
together with that state. The migration's name is not enough, since earlier operations of it may have changed the state.
"""

from __future__ import annotations

import io
import pickle
from functools import cache
from typing import Any

from django.apps import apps as current
from django.conf import SettingsReference
from django.db.models import SET, Field, ForeignObjectRel, Model


def is_historical(model: type[Model]) -> bool:
    """Whether a model class belongs to a migration's state."""
    return model._meta.apps is not current


def dumps(value: Any, model: type[Model]) -> bytes:
    """Pickle a value that contains the model, or other models of the same apps."""
    if not is_historical(model):
        return pickle.dumps((None, pickle.dumps(value, pickle.HIGHEST_PROTOCOL)))
    buffer = io.BytesIO()
    _Pickler(buffer, model._meta.apps).dump(value)
    return pickle.dumps((_state(model._meta.apps), buffer.getvalue()))


def loads(data: bytes) -> Any:
    """Restore a pickle made by `dumps`."""
    state, packed = pickle.loads(data)
    return pickle.loads(packed) if state is None else _Unpickler(io.BytesIO(packed), _restored(state)).load()


def _state(apps: Any) -> bytes:
    from django.db.migrations.state import ProjectState

    models = ProjectState.from_apps(apps).models
    for state in models.values():
        for _name, manager in state.managers:  # copies; rendering the state makes new ones
            manager.model = None
    buffer = io.BytesIO()
    _StatePickler(buffer, pickle.HIGHEST_PROTOCOL).dump(models)
    return buffer.getvalue()


@cache
def _restored(state: bytes | None) -> Any:
    if state is None:
        return current
    from django.db.migrations.state import ProjectState

    return ProjectState(pickle.loads(state)).apps


class _StatePickler(pickle.Pickler):
    """Pickles `settings.AUTH_USER_MODEL` in a foreign key: a string with two arguments, where pickle gives one."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, SettingsReference):
            return SettingsReference, (str(value), value.setting_name)  # type: ignore[attr-defined]
        if getattr(value, "__qualname__", "").startswith("SET.<locals>"):  # on_delete=SET(...) is a closure
            return SET, tuple(value.deconstruct()[1])
        return NotImplemented


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, apps: Any) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._apps = apps

    def persistent_id(self, value: Any) -> tuple[str, ...] | None:
        if isinstance(value, type):
            return self._model_id(value) if self._is_ours(value) else None
        if isinstance(value, ForeignObjectRel) and self._is_ours(value.model):
            return "relation", value.field.model._meta.label, value.field.name
        if isinstance(value, Field) and self._is_ours(getattr(value, "model", None)):
            return "field", value.model._meta.label, value.name
        return None

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Model) and self._is_ours(type(value)):  # an instance in a lookup
            return _instance, (type(value), value.__reduce__()[2])
        return NotImplemented

    def _model_id(self, model: type[Model]) -> tuple[str, ...]:
        return "model", model._meta.label

    def _is_ours(self, model: Any) -> bool:
        return isinstance(model, type) and issubclass(model, Model) and model._meta.apps is self._apps


def _instance(model: type[Model], state: dict[str, Any]) -> Model:
    instance = model.__new__(model)
    instance.__setstate__(state)  # type: ignore[attr-defined]
    return instance


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, apps: Any) -> None:
        super().__init__(file)
        self._apps = apps

    def persistent_load(self, reference: Any) -> Any:
        kind, label, *name = reference
        model = self._apps.get_model(label)
        if kind == "model":
            return model
        field = model._meta.get_field(*name)
        return field.remote_field if kind == "relation" else field
