"""A durable run of any length needs little memory: what has ended is known as a few ranges."""

import pytest

from poolsave import InputChanged, Run, pooled_operation
from poolsave._durable import engine, sources

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


@pooled_operation(executor="serial", transaction=None, chunksize=5, progress=False, max_failures=1)
def refuses_last(number):
    if number == 1999:
        raise ValueError(number)


def by_number(number):
    return number


def test_places_of_what_has_ended_are_forgotten(monkeypatch):
    known = []

    class Places(engine.Places):
        def add(self, index, place):
            super().add(index, place)
            known.append(len(self._begins))

    monkeypatch.setattr(engine, "Places", Places)
    assert refuses_last.map(range(1999), run=Run("long", key=by_number)).ok
    assert len(known) > 350
    assert max(known) <= 2 * sources.MIN_PLACES


@pytest.mark.parametrize("changed", [0, 5, 1500, 1998])
def test_changed_object_of_a_long_input_is_noticed(changed, monkeypatch):
    monkeypatch.setattr(sources, "TICK", 400)
    refuses_last.map(range(2000), run=Run("long", key=by_number))
    others = [number if number != changed else -1 for number in range(2000)]
    with pytest.raises(InputChanged, match="behind the key"):
        refuses_last.map(others, run=Run("long", key=by_number))
    assert refuses_last.using(max_failures=None).map(range(2000), run=Run("long", key=by_number)).run.done == 1999
