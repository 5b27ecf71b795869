"""Plain values, which never change and can always be pickled and restored, so that nothing has to be tried."""

from __future__ import annotations

__all__ = ["PLAIN"]

PLAIN = frozenset({int, str, bytes, float, bool, complex, type(None)})
"""Their types."""
