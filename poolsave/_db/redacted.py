"""Values with passwords in them, which an error report that shows the variables of every frame does not show.

Django's error mails and Sentry print each local variable by its `repr`, and cleanse only settings that they know by
their names.
"""

from __future__ import annotations

import pickle
from typing import Any


class RedactedDict(dict[str, Any]):
    """Settings by name."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} settings>"


class RedactedBytes(bytes):
    """Pickled settings, alone or among other things."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


def dumps(value: object) -> RedactedBytes:
    """Pickle what has passwords in it."""
    return RedactedBytes(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
