"""The value by which a stage of a pipeline ends an object."""

from __future__ import annotations

import enum
from typing import Any


class _Drop(enum.Enum):  # an enumeration, so that there is one of it in every process
    DROP = "drop"

    def __repr__(self) -> str:
        return "poolsave.DROP"


DROP: Any = _Drop.DROP
"""Returned by a stage of a pipeline, it ends the object there: it goes to no further stage and counts as dropped.

For type checkers it is anything, so that a stage is annotated with what it gives otherwise. What the stage itself has
saved stays. An operation that is mapped by itself simply gives it as its value.
"""
