"""The app config: with "poolsave" in INSTALLED_APPS, `manage.py check` checks its settings.

Everything else works without it.
"""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import Tags, register

from ._runs.checks import check_databases, check_settings

__all__ = ["PoolsaveConfig"]


class PoolsaveConfig(AppConfig):
    """Registers the system checks. There are no models."""

    name = "poolsave"

    def ready(self) -> None:
        register(check_settings)
        register(check_databases, Tags.database)
