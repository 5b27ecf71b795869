"""Django up in a fresh process, before anything of the user's is unpickled there."""

from __future__ import annotations

import os
import pickle
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import process, spawn
from typing import Any

from django.apps import apps
from django.conf import ENVIRONMENT_VARIABLE, UserSettingsHolder, settings

from .errors import InvalidOperation

__all__ = ["Surroundings"]

NOT_SENT = frozenset({"DATABASES", "INSTALLED_APPS"})
"""Of settings that were overridden at run time: databases go separately, and apps are populated once per process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What Django knows in the caller and a worker must know too; it can always be pickled."""

    settings_module: str | None
    configured: bytes
    """Settings of `settings.configure()`, if there is no module."""
    overridden: bytes
    """What tests override."""
    unsendable: tuple[str, ...]
    apps_ready: bool
    main: tuple[str | None, str | None]
    """Name and path of the script, as multiprocessing would import it in a fresh process."""
    language: str | None
    time_zone: Any

    @staticmethod
    def known() -> bool:
        """Whether Django's settings are configured, or named."""
        return settings.configured or bool(os.environ.get(ENVIRONMENT_VARIABLE))

    @classmethod
    def capture(cls) -> Surroundings | None:
        """Describe the caller; None if Django's settings are neither configured nor named."""
        if not cls.known():
            return None
        from django.utils import timezone, translation

        language = translation.get_language() if settings.USE_I18N else None
        module, configured, overridden = _settings_by_origin()
        packed, unsendable = _pack_each(configured)
        return cls(
            settings_module=module,
            configured=packed,
            overridden=_pack_each(overridden)[0],
            unsendable=unsendable,
            apps_ready=apps.ready,
            main=_main_module(),
            language=language,
            time_zone=timezone.get_current_timezone() if settings.USE_TZ else None,
        )

    def preload(self) -> None:
        """Set up a fork server: the script first, which may configure Django itself, then whatever is missing."""
        name, path = self.main
        # The mark that multiprocessing sets too, so that a script without a __main__ guard fails clearly.
        process.current_process()._inheriting = True  # type: ignore[attr-defined]
        try:
            if name is not None:
                spawn._fixup_main_from_name(name)  # type: ignore[attr-defined]
            elif path is not None:
                spawn._fixup_main_from_path(path)  # type: ignore[attr-defined]
        finally:
            del process.current_process()._inheriting  # type: ignore[attr-defined]
        self.bring_up()

    def bring_up(self) -> None:
        """Configure Django and populate its apps, as far as that has not happened in this process."""
        if not settings.configured:
            self._configure()
        if self.apps_ready and not apps.ready:
            import django

            django.setup()

    def _configure(self) -> None:
        if self.settings_module is not None:
            os.environ[ENVIRONMENT_VARIABLE] = self.settings_module
            return
        if self.unsendable:
            raise InvalidOperation(
                f"the settings {', '.join(self.unsendable)} cannot be pickled for a fresh process: call "
                'settings.configure() where the script is imported, or use start_method="fork"'
            )
        settings.configure(**pickle.loads(self.configured))

    @contextmanager
    def active(self, *, fresh: bool) -> Iterator[None]:
        """Have the caller's language and time zone, and in a fresh process the settings that its tests override."""
        from django.utils import timezone, translation

        with ExitStack() as stack:
            if fresh:
                stack.enter_context(_overridden(self.overridden))
            # A forked child has the language already; activating it would load the catalogues once more.
            if self.language not in (None, translation.get_language()):
                stack.enter_context(translation.override(self.language))
            if self.time_zone is not None:
                stack.enter_context(timezone.override(self.time_zone))
            yield


def _settings_by_origin() -> tuple[str | None, dict[str, Any], dict[str, Any]]:
    """The settings module, or what `settings.configure()` was given, and what has been overridden since."""
    layers: list[dict[str, Any]] = []
    wrapped: Any = settings._wrapped  # type: ignore[misc]
    while isinstance(wrapped, UserSettingsHolder):
        layers.append({name: value for name, value in vars(wrapped).items() if name.isupper()})
        wrapped = wrapped.default_settings
    module: str | None = getattr(wrapped, "SETTINGS_MODULE", None)
    configured = {} if module is not None else layers.pop()
    overridden: dict[str, Any] = {}
    for layer in reversed(layers):
        overridden.update(layer)
    return module, configured, {name: value for name, value in overridden.items() if name not in NOT_SENT}


def _pack_each(values: dict[str, Any]) -> tuple[bytes, tuple[str, ...]]:
    good: dict[str, Any] = {}
    bad: list[str] = []
    for name, value in values.items():
        try:
            pickle.dumps(value)
        except Exception:  # whatever a setting's own pickling raises: it is named if it turns out to be needed
            bad.append(name)
        else:
            good[name] = value
    return pickle.dumps(good), tuple(bad)


def _main_module() -> tuple[str | None, str | None]:
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", None)
    path = getattr(main, "__file__", None)
    return name, None if path is None else os.path.abspath(path)


_in_force: dict[bytes, tuple[int, Any]] = {}
_entrance = threading.Lock()


@contextmanager
def _overridden(packed: bytes) -> Iterator[None]:
    values = pickle.loads(packed)
    if not values:
        yield
        return
    # Settings are those of the process: of its threads the first puts them in force, and the last puts them back.
    with _entrance:
        users, override = _in_force.get(packed) or (0, _override(values))
        _in_force[packed] = users + 1, override
    try:
        yield
    finally:
        with _entrance:
            users, override = _in_force.pop(packed)
            if users > 1:
                _in_force[packed] = users - 1, override
            else:
                override.disable()


def _override(values: dict[str, Any]) -> Any:
    from django.test import override_settings  # slow to import, and only tests have something to override

    override = override_settings(**values)
    override.enable()
    return override
