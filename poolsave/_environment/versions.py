"""Versions that must agree between the caller and a worker that was started independently, as Dask's are."""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

import django
from django.conf import ENVIRONMENT_VARIABLE, settings

from .django_setup import settings_by_origin


class Versions(NamedTuple):
    """The versions and the settings module of one process."""

    poolsave: str
    python: str
    django: str
    settings: str | None
    """The settings module; None if settings are configured without one, or not yet."""

    @classmethod
    def here(cls) -> Versions:
        """Give those of this process, whether Django is set up or not."""
        from .. import __version__  # which is there only after the package's own imports

        major, minor = sys.version_info[:2]
        module = settings_by_origin()[0] if settings.configured else os.environ.get(ENVIRONMENT_VARIABLE) or None
        return cls(__version__, f"{major}.{minor}", django.get_version(), module)

    def differences(self, others: Versions) -> str:
        """Name the fields in which the others differ, as text; empty if there are none."""
        pairs = zip(self._fields, self, others, strict=True)
        return ", ".join(f"{name} {there!r} and not {here!r}" for name, here, there in pairs if here != there)
