"""Options that come from the environment and from `settings.POOLSAVE`, as they stand there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from django.utils.module_loading import import_string

from ..errors import InvalidOption

ENVIRONMENT = {"executor": "POOLSAVE_EXECUTOR", "workers": "POOLSAVE_WORKERS"}
IMPORTED = ("carry", "before_fork", "after_fork")
"""Options that settings may give by dotted paths."""
OF_EXECUTORS = {"dask": ("address",)}
"""What stands in `settings.POOLSAVE` beside the options, by the name of the executor that it is for."""


def from_environment() -> dict[str, Any]:
    found: dict[str, Any] = {name: os.environ[key] for name, key in ENVIRONMENT.items() if os.environ.get(key)}
    if "workers" in found and found["workers"].isascii() and found["workers"].isdigit():
        found["workers"] = int(found["workers"])
    return found


def from_settings() -> Mapping[str, Any]:
    found = _settings()
    for name in OF_EXECUTORS:
        _checked(name, found.get(name, {}))
    return {name: value for name, value in found.items() if name not in OF_EXECUTORS}


def of_executor(name: str) -> Mapping[str, Any]:
    """What `settings.POOLSAVE` says for one executor, whichever options are chosen."""
    return _checked(name, _settings().get(name, {}))


def _checked(name: str, value: Any) -> Mapping[str, Any]:
    keys = OF_EXECUTORS[name]
    if isinstance(value, Mapping) and all(key in keys and isinstance(one, str) for key, one in value.items()):
        return value
    raise InvalidOption(
        name, value, f"give a dictionary of strings with {' and '.join(map(repr, keys))}", "settings.POOLSAVE"
    )


def _settings() -> Mapping[str, Any]:
    from django.conf import ENVIRONMENT_VARIABLE, settings

    if not settings.configured and not os.environ.get(ENVIRONMENT_VARIABLE):
        return {}
    found = getattr(settings, "POOLSAVE", {})
    if not isinstance(found, Mapping):
        raise InvalidOption("POOLSAVE", found, "give a dictionary of options", "settings.POOLSAVE")
    return found


def imported(layer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Dotted paths as what they lead to, since settings are read before most modules can be imported."""
    return {name: _followed(name, value) if name in IMPORTED else value for name, value in layer.items()}


def _followed(name: str, value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(_at(name, one) if isinstance(one, str) else one for one in value)
    return _at(name, value) if isinstance(value, str) else value


def _at(name: str, path: str) -> Any:
    try:
        return import_string(path)
    except ImportError as error:
        raise InvalidOption(name, path, f"it cannot be imported: {error}", "settings.POOLSAVE") from error
