"""The base class of all errors."""

from __future__ import annotations


class PoolsaveError(Exception):
    """The base class of all errors of poolsave."""
