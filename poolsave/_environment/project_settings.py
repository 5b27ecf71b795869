"""Reads options from the environment and from `settings.POOLSAVE`. `options.py` checks them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from django.conf import ENVIRONMENT_VARIABLE, settings
from django.utils.functional import empty
from django.utils.module_loading import import_string

from ..errors import InvalidOption

ENVIRONMENT = {"executor": "POOLSAVE_EXECUTOR", "workers": "POOLSAVE_WORKERS"}
IMPORTED = ("throttle", "carry", "before_fork", "after_fork")
"""Options that settings may give by dotted paths."""
EXECUTOR_SETTINGS = {"dask": ("address",)}
"""Keys in `settings.POOLSAVE` besides the options: by the name of an executor, the names of its settings."""

OPERATING: dict[str, Any] = {"runner": None, "slice": 120.0}
"""Keys in `settings.POOLSAVE` about durable runs, with their defaults. See `operating_settings`."""


def from_environment() -> dict[str, Any]:
    """Give the options that environment variables set."""
    options: dict[str, Any] = {name: value for name, key in ENVIRONMENT.items() if (value := os.environ.get(key))}
    if "workers" in options and options["workers"].isascii() and options["workers"].isdigit():
        options["workers"] = int(options["workers"])
    return options


def from_settings() -> Mapping[str, Any]:
    """Give the options in `settings.POOLSAVE`, without what is for one executor or about durable runs."""
    values = all_settings()
    for name in EXECUTOR_SETTINGS:
        _checked(name, values.get(name, {}))
    return {name: value for name, value in values.items() if name not in EXECUTOR_SETTINGS | OPERATING}


def operating_settings() -> dict[str, Any]:
    """Give what `settings.POOLSAVE` says about durable runs.

    "runner": a callable that is given the name of a run that is due and the alias of its ledger, by its dotted path;
    None without one. "slice": seconds after which a session of a runner makes room for others.
    """
    values = {name: all_settings().get(name, default) for name, default in OPERATING.items()}
    if isinstance(values["runner"], str):
        values["runner"] = _import("runner", values["runner"])
    if values["runner"] is not None and not callable(values["runner"]):
        raise InvalidOption("runner", values["runner"], 'give "poolsave.ledger.tasks.enqueue"', "settings.POOLSAVE")
    seconds = values["slice"]
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise InvalidOption("slice", seconds, "give seconds, a number above 0", "settings.POOLSAVE")
    return values


def executor_settings(name: str) -> Mapping[str, Any]:
    """Give what `settings.POOLSAVE` says for one executor."""
    return _checked(name, all_settings().get(name, {}))


def _checked(name: str, value: Any) -> Mapping[str, Any]:
    keys = EXECUTOR_SETTINGS[name]
    if isinstance(value, Mapping) and all(key in keys and isinstance(text, str) for key, text in value.items()):
        return value
    raise InvalidOption(
        name, value, f"give a dictionary of strings with {' and '.join(map(repr, keys))}", "settings.POOLSAVE"
    )


def all_settings() -> Mapping[str, Any]:
    """Give `settings.POOLSAVE`; nothing, if Django has no settings."""
    present: Any = object.__getattribute__(settings, "_wrapped")  # asking the lazy object takes ten times as long
    if present is empty:
        if not os.environ.get(ENVIRONMENT_VARIABLE):
            return {}
        present = settings
    values = getattr(present, "POOLSAVE", {})
    if not isinstance(values, Mapping):
        raise InvalidOption("POOLSAVE", values, "give a dictionary of options", "settings.POOLSAVE")
    return values


def imported(layer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Import the dotted paths in a layer. Settings give paths, since most modules cannot be imported by then."""
    return {name: _import_paths(name, value) if name in IMPORTED else value for name, value in layer.items()}


def _import_paths(name: str, value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(_import(name, entry) if isinstance(entry, str) else entry for entry in value)
    return _import(name, value) if isinstance(value, str) else value


def _import(name: str, path: str) -> Any:
    try:
        return import_string(path)
    except ImportError as error:
        raise InvalidOption(name, path, f"it cannot be imported: {error}", "settings.POOLSAVE") from error
