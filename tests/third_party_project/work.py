"""What the modules beside this one have: functions, their objects, and the tables that they leave."""

from collections.abc import Callable
from typing import Any, NamedTuple

from django.contrib.auth.models import Group, User

from poolsave import PooledOperation

OBJECTS = range(12)
FAILING = {9, 11}
"""In the last of three chunks, so that `batch_writes` runs only that one again in the ordinary way."""


class Work(NamedTuple):
    """Something to be done by a loop and by pools."""

    operation: PooledOperation
    tables: Callable[[], dict[str, list]]
    """Gives the rows, with names instead of keys, and in an order that does not depend on which came first."""
    rows: dict[str, int]
    """How many rows there are, counted by hand."""
    prepare: Callable[[], Any] = lambda: None


def people():
    """Make those that the functions look for."""
    User.objects.create(username="clerk", email="clerk@example.org")
    Group.objects.create(name="customers")


def fail_some(number):
    """Fail after everything was written, with a few objects."""
    if number in FAILING:
        raise LookupError(number)
