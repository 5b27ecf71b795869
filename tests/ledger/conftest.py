"""Backfills that a test registers for itself."""

import pytest

from poolsave.ledger import registry
from tests.support.working import backfill_of


@pytest.fixture
def registered(monkeypatch):
    """Register an operation over the things of a database, under a name, which is given back."""

    def register(name, operation, alias, **filters):
        monkeypatch.setitem(registry._registered, name, backfill_of(name, operation, alias, **filters))
        return name

    return register
