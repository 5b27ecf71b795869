"""What has to be the same in the caller and in a worker that somebody else has started, perhaps long before."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import NamedTuple

import django
from django.conf import ENVIRONMENT_VARIABLE, settings

from .django_setup import settings_by_origin


class Versions(NamedTuple):
    """Which code a process runs, and by which settings."""

    poolsave: str
    python: str
    django: str
    settings: str | None
    """The settings module; None if settings are configured without one, or not yet."""

    @classmethod
    def here(cls) -> Versions:
        """Those of this process, whether Django is up or not."""
        major, minor = sys.version_info[:2]
        module = settings_by_origin()[0] if settings.configured else os.environ.get(ENVIRONMENT_VARIABLE) or None
        return cls(metadata.version("poolsave"), f"{major}.{minor}", django.get_version(), module)

    def differences(self, others: Versions) -> str:
        """What others have another of, as text; empty if that is nothing."""
        pairs = zip(self._fields, self, others, strict=True)
        return ", ".join(f"{name} {there!r} and not {here!r}" for name, here, there in pairs if here != there)
