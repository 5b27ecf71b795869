"""Plain data, which can always be pickled and restored, so that nothing has to be tried object by object."""

from __future__ import annotations

import io
import pickle
from typing import Any

__all__ = ["PLAIN", "dumps_plain"]

PLAIN = frozenset({int, str, bytes, float, bool, complex, type(None)})
"""Types whose values can always be pickled and unpickled, so that nothing has to be tried, and never change."""


class _NotPlain(Exception):  # no error, but a way out of the pickler
    pass


class _PlainPickler(pickle.Pickler):
    def reducer_override(self, _obj: Any) -> Any:
        """Called for everything but the plain data that pickle knows by itself: numbers, strings, lists, dicts."""
        raise _NotPlain


def dumps_plain(data: Any) -> bytes | None:
    """Pickle plain data, which can always be restored, in one go; None if there is anything else in it.

    Nothing is remembered on the way: what occurs twice is restored as two, as if each object were pickled by itself.
    """
    buffer = io.BytesIO()
    pickler = _PlainPickler(buffer, pickle.HIGHEST_PROTOCOL)
    pickler.fast = True
    try:
        pickler.dump(data)
    except (_NotPlain, ValueError, RecursionError):  # the latter two for what contains itself, or is very deep
        return None
    return buffer.getvalue()
