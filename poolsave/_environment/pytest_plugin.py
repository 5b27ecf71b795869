"""The fixture that pytest finds by an entry point."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def serial_saves() -> Iterator[None]:
    """Run every pool inline, in the test's own transaction: `poolsave.testing.serial_saves()`."""
    from ..testing import serial_saves  # here, since pytest loads plugins before Django has its settings

    with serial_saves():
        yield
