"""Sets Django up in a fresh process, before anything of the user's is unpickled there.

`_worker/job.py` captures the caller's environment, and activates it in each worker. `preload.py` uses it in the fork
server.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import process, spawn
from typing import Any, NamedTuple

from django.apps import apps
from django.conf import ENVIRONMENT_VARIABLE, UserSettingsHolder, settings
from django.utils import timezone, translation

from .._runtime.redacted import RedactedBytes, RedactedDict, dumps
from ..errors import InvalidOperation

NOT_SENT = frozenset({"DATABASES", "INSTALLED_APPS"})
"""Overridden settings that are left out: databases are sent separately, and apps are populated once per process."""


class Localization(NamedTuple):
    """The active language and time zone of one thread."""

    language: str | None
    """None: translations are off, as in `manage.py migrate`."""
    time_zone: Any
    """None: the project uses none (`USE_TZ = False`)."""

    @classmethod
    def now(cls) -> Localization:
        """Give those of this thread. Django's settings must be available."""
        return cls(translation.get_language(), timezone.get_current_timezone() if settings.USE_TZ else None)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Activate them in this thread."""
        with ExitStack() as stack:
            # Activating the current language again would load its catalogues again in every worker.
            if self.language != translation.get_language():
                stack.enter_context(translation.override(self.language))
            if self.time_zone is not None:
                stack.enter_context(timezone.override(self.time_zone))
            yield


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedSettings:
    """What a process that is started afresh needs to configure Django."""

    module: str | None
    configured: RedactedBytes
    """Pickled arguments of `settings.configure()`, if there is no module."""
    overridden: RedactedBytes
    """Pickled settings that tests override."""
    unsendable: tuple[str, ...]
    """Names of settings that cannot be pickled."""
    main: tuple[str | None, str | None]
    """Module name and path by which multiprocessing imports the script in a fresh process."""

    @classmethod
    def now(cls) -> PackedSettings:
        """Pack those of this process."""
        module, configured, overridden = settings_by_origin()
        packed, unsendable = _pack_each(configured)
        return cls(
            module=module,
            configured=packed,
            overridden=_pack_each(overridden)[0],
            unsendable=unsendable,
            main=_main_module(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DjangoEnvironment:
    """The state of Django in the caller that a worker needs. It can always be pickled."""

    apps_ready: bool
    localization: Localization
    script_prefix: str
    """The prefix of every path from `reverse()`."""
    urlconf: str | None
    """None: `ROOT_URLCONF`, or a urlconf without a name."""
    packed: PackedSettings | None = None
    """None in the caller: they are packed when this is pickled, since a fork has the settings themselves."""

    def __getstate__(self) -> list[Any]:
        packed = self.packed or PackedSettings.now()
        return [self.apps_ready, self.localization, self.script_prefix, self.urlconf, packed]

    @property
    def _received(self) -> PackedSettings:
        assert self.packed is not None  # in a process that is started afresh
        return self.packed

    @staticmethod
    def has_settings() -> bool:
        """Whether Django's settings are configured, or the environment names a module."""
        return settings.configured or bool(os.environ.get(ENVIRONMENT_VARIABLE))

    @classmethod
    def capture(cls) -> DjangoEnvironment | None:
        """Capture the caller's environment; None if Django's settings are neither configured nor named."""
        if not cls.has_settings():
            return None
        from django.urls import get_script_prefix, get_urlconf

        urlconf = get_urlconf()
        return cls(
            apps_ready=apps.ready,
            localization=Localization.now(),
            script_prefix=get_script_prefix(),
            urlconf=urlconf if isinstance(urlconf, str) else None,
        )

    def preload(self) -> None:
        """Set up a fork server: import the script, which may configure Django itself, then do what is missing."""
        name, path = self._received.main
        # multiprocessing sets this flag too: with it a script without a __main__ guard fails with a clear error.
        process.current_process()._inheriting = True  # type: ignore[attr-defined]
        try:
            if name is not None:
                spawn._fixup_main_from_name(name)  # type: ignore[attr-defined]
            elif path is not None:
                spawn._fixup_main_from_path(path)  # type: ignore[attr-defined]
        finally:
            del process.current_process()._inheriting  # type: ignore[attr-defined]
        self.set_up()

    def set_up(self) -> None:
        """Configure Django and populate its apps, unless this process has done so."""
        if not settings.configured:
            _configure(self._received)
        if self.apps_ready and not apps.ready:
            import django

            django.setup()

    def check_same_settings(self) -> None:
        """Refuse a process that an earlier run has configured with other values.

        Raises:
            InvalidOperation: naming the settings.
        """
        values = pickle.loads(self._received.configured) if _configured_here else {}
        if different := [name for name in {**_configured_here, **values} if _differ(name, values)]:
            raise InvalidOperation(
                f"this worker process was configured by an earlier run, for which {', '.join(sorted(different))} had "
                "another value: restart it, or have the settings in a module"
            )

    @contextmanager
    def active(self, *, fresh: bool) -> Iterator[None]:
        """Activate the caller's language, time zone and URLs, and in a `fresh` process its overridden settings."""
        with ExitStack() as stack:
            if fresh:
                stack.enter_context(_overridden(self._received.overridden))
            stack.enter_context(self.localization.active())
            stack.enter_context(_urls(self.script_prefix, self.urlconf))
            yield


def _configure(packed: PackedSettings) -> None:
    if packed.module is not None:
        os.environ[ENVIRONMENT_VARIABLE] = packed.module
        return
    if packed.unsendable:
        raise InvalidOperation(
            f"the settings {', '.join(packed.unsendable)} cannot be pickled for a fresh process: call "
            'settings.configure() where the script is imported, or use start_method="fork"'
        )
    values = pickle.loads(packed.configured)
    settings.configure(**values)
    _configured_here.update(values)


@contextmanager
def _urls(script_prefix: str, urlconf: str | None) -> Iterator[None]:
    from django.urls import get_script_prefix, get_urlconf, set_script_prefix, set_urlconf

    before = get_script_prefix(), get_urlconf()
    set_script_prefix(script_prefix)
    set_urlconf(urlconf)
    try:
        yield
    finally:
        set_script_prefix(before[0])
        set_urlconf(before[1])


_configured_here: dict[str, Any] = {}
"""The values with which poolsave has configured Django in this process."""


def _differ(name: str, values: dict[str, Any]) -> bool:
    missing = object()
    # Databases are sent with each run.
    return name != "DATABASES" and bool(values.get(name, missing) != _configured_here.get(name, missing))


def settings_by_origin() -> tuple[str | None, RedactedDict, RedactedDict]:
    """Give the settings module or the arguments of `settings.configure()`, and what has been overridden since."""
    layers: list[RedactedDict] = []
    wrapped: Any = settings._wrapped  # type: ignore[misc]
    while isinstance(wrapped, UserSettingsHolder):
        layers.append(RedactedDict((name, value) for name, value in vars(wrapped).items() if name.isupper()))
        wrapped = wrapped.default_settings
    module: str | None = getattr(wrapped, "SETTINGS_MODULE", None)
    configured = RedactedDict() if module is not None else layers.pop()
    overridden = RedactedDict()
    for layer in reversed(layers):
        overridden.update(layer)
    for name in NOT_SENT:
        overridden.pop(name, None)
    return module, configured, overridden


def _pack_each(values: dict[str, Any]) -> tuple[RedactedBytes, tuple[str, ...]]:
    packable = RedactedDict()
    failed: list[str] = []
    for name, value in values.items():
        try:
            pickle.dumps(value)
        except Exception:  # whatever a setting's own pickling raises: an error names the setting if it is needed
            failed.append(name)
        else:
            packable[name] = value
    return dumps(packable), tuple(failed)


def _main_module() -> tuple[str | None, str | None]:
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", None)
    path = getattr(main, "__file__", None)
    return name, None if path is None else os.path.abspath(path)


@dataclass
class _ActiveOverride:
    """The settings that are overridden in this process now, and the number of threads that need them."""

    packed: bytes = b""
    users: int = 0
    override: Any = None


_active = _ActiveOverride()
_changed = threading.Condition()


@contextmanager
def _overridden(packed: bytes) -> Iterator[None]:
    """Override settings. They are process-wide: the first thread applies the overrides and the last one reverts them.

    Threads of a run with other overrides wait.
    """
    with _changed:
        _changed.wait_for(lambda: not _active.users or _active.packed == packed)
        if not _active.users:
            _active.override = _override(pickle.loads(packed))
            _active.packed = packed
        _active.users += 1
    try:
        yield
    finally:
        with _changed:
            _active.users -= 1
            if not _active.users:
                if _active.override is not None:
                    _active.override.disable()
                _changed.notify_all()


def _override(values: dict[str, Any]) -> Any:
    if not values:
        return None
    from django.test import override_settings  # slow to import, and only tests have something to override

    override = override_settings(**values)
    override.enable()
    return override
