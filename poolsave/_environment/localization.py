"""The language and the time zone that texts and times are written in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from django.conf import settings
from django.utils import timezone, translation


class Localization(NamedTuple):
    """What one thread has in force."""

    language: str | None
    """None: translations are off, as in `manage.py migrate`."""
    time_zone: Any
    """None: the project has none (`USE_TZ = False`)."""

    @classmethod
    def now(cls) -> Localization:
        """What this thread has in force; Django's settings are known."""
        return cls(translation.get_language(), timezone.get_current_timezone() if settings.USE_TZ else None)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Have it in force in this thread."""
        with ExitStack() as stack:
            # Activating the language that is active already would load its catalogues once more in every worker.
            if self.language != translation.get_language():
                stack.enter_context(translation.override(self.language))
            if self.time_zone is not None:
                stack.enter_context(timezone.override(self.time_zone))
            yield
