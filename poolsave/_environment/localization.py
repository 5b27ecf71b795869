"""Language and time zone of a thread, as a value that workers can activate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from django.conf import settings
from django.utils import timezone, translation


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
