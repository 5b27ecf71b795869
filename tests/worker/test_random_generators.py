"""Generators of random numbers that a worker process has from its parent, or from their module, give other numbers in
each of them."""

import gc
import random
import subprocess
import sys
import textwrap
import weakref

import pytest

from poolsave._environment import random_generators
from tests.conftest import find_generators
from tests.support.operations import pure

numpy = pytest.importorskip("numpy")


@pytest.fixture(autouse=True)
def _each_worker_searches(monkeypatch):
    """As it does outside of these tests: tests/conftest.py has them searched for once."""
    monkeypatch.setattr(random_generators, "find_generators", find_generators)


class Dice(random.Random):
    """As libraries have them, with a seed method of their own."""

    def seed(self, number):
        super().seed(number)


generators = [
    random.Random(1).random,
    Dice(1).random,
    numpy.random.default_rng(1).random,
    numpy.random.Generator(numpy.random.SFC64(1)).random,
    numpy.random.RandomState(1).random_sample,
]
normal = numpy.random.RandomState(1)


@pure
def draws(_item):
    return [float(draw()) for draw in generators] + [float(normal.normal())]


def seeds_dice():
    generators[1].__self__.seed(7)


def test_each_worker_draws_other_numbers(start_method):
    normal.normal()  # the next one is in store
    found = [draws.using(workers=1, start_method=start_method).map([1]).values[0] for _ in range(2)]
    found.append(draws(1))
    for numbers in zip(*found, strict=True):
        assert len(set(numbers)) == 3


def test_a_seed_of_after_fork_counts(start_method):
    found = [
        draws.using(workers=1, start_method=start_method, after_fork=seeds_dice).map([1]).values[0][1] for _ in "ab"
    ]
    assert found == [random.Random(7).random()] * 2


def test_a_seed_of_the_function_counts(start_method):
    assert seeded.using(workers=1, start_method=start_method).map([5]).values == [random.Random(5).random()]


@pure
def seeded(number):
    generators[0].__self__.seed(number)
    return generators[0]()


@pytest.mark.parametrize("gone", ["generator", "name"])
def test_search_finds_what_came_as_something_else_went(monkeypatch, gone):
    """As the name of an import, or the generator of the run before. The class has as many references as before."""
    monkeypatch.setattr(random_generators, "_numpy_kinds", tuple)
    kept, went = random.Random(1), random.Random(2)
    names = [random.Random]
    find_generators()
    references = sys.getrefcount(random.Random)
    if gone == "generator":
        del went
    else:
        names.clear()
    came = random.Random(3)
    references -= sys.getrefcount(random.Random)
    assert references == 0  # so that they tell nothing
    assert {id(kept), id(came)} <= {*map(id, find_generators())}


@pytest.fixture
def unfrozen():
    """As in a usual process: tests/conftest.py has frozen all objects."""
    gc.unfreeze()
    gc.collect()
    if gc.get_freeze_count():
        pytest.skip("this release of CPython 3.12 freezes objects by itself, so that only workers can search")
    yield
    gc.freeze()


AGES = {
    "new": lambda: None,
    "collected once": lambda: gc.collect(0),
    "old": gc.collect,
    "frozen for a while": lambda: (gc.freeze(), gc.unfreeze()),
}


@pytest.mark.parametrize("age", AGES)
@pytest.mark.parametrize("make", [random.Random, Dice, numpy.random.RandomState, numpy.random.PCG64])
def test_search_finds_what_came_after_the_last_one(unfrozen, make, age):
    before = make(1)
    random_generators.find_before_fork()
    came = make(2)
    AGES[age]()
    assert {id(before), id(came)} <= {*map(id, random_generators.find_before_fork())}


def test_search_after_a_search_looks_at_young_objects_only(monkeypatch, unfrozen):
    gc.collect()
    random_generators.find_before_fork()
    monkeypatch.setattr(random_generators, "find_generators", None)
    came = random.Random(1)
    assert id(came) in map(id, random_generators.find_before_fork())


@pytest.mark.parametrize("searches", [1, 2])
def test_search_keeps_no_generator_alive(unfrozen, searches):
    kept = weakref.ref(generator := Dice(1))
    for _ in range(searches):
        random_generators.find_before_fork()
    del generator
    assert kept() is None


SCRIPT = """
    import random
    import sys

    import django
    from django.conf import settings
    from poolsave import pooled_operation

    generator = random.Random(11)

    @pooled_operation(workers=1, transaction=None, progress=False)
    def draw(_item):
        return generator.random()

    if __name__ == "__main__":
        settings.configure()
        django.setup()
        found = [draw.using(start_method="spawn").map([1]).values[0] for _ in range(2)]
        assert len({*found, draw(1)}) == 3, found
"""


def test_a_generator_of_a_script_is_seeded_in_spawned_workers(tmp_path):
    """They import the script before poolsave has the say."""
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
