"""Put "poolsave" into INSTALLED_APPS to have `manage.py check` look at what settings say of it. It works without."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import Tags, register

from ._runs.checks import check_databases, check_settings

__all__ = ["PoolsaveConfig"]


class PoolsaveConfig(AppConfig):
    """Registers the system checks; there are no models."""

    name = "poolsave"

    def ready(self) -> None:
        register(check_settings)
        register(check_databases, Tags.database)
