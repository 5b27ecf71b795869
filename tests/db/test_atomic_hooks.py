"""Hooks of other packages into `atomic()` and a connection's public methods run for an object as in a loop."""

import pytest
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from poolsave import pooled_operation
from tests.models import Person

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")

NAMES = list("abcd")
HOOKED = [
    (transaction.Atomic, "__enter__"),
    (transaction.Atomic, "__exit__"),
    (BaseDatabaseWrapper, "savepoint"),
    (BaseDatabaseWrapper, "savepoint_commit"),
    (BaseDatabaseWrapper, "savepoint_rollback"),
]


@pytest.fixture
def calls(monkeypatch):
    """The names of the hooked methods, as they are called."""
    found = []
    for owner, name in HOOKED:
        monkeypatch.setattr(owner, name, recorded(found, name, getattr(owner, name)))
    return found


def recorded(calls, name, method):
    def call(*arguments):
        calls.append(name)
        return method(*arguments)

    return call


def save_all_but_b(name, alias="default"):
    with connections[alias].cursor() as cursor:
        cursor.execute("INSERT INTO tests_person (name) VALUES (%s)", [name])
    if name == "b":
        raise ValueError(name)


def run(function, **options):
    return pooled_operation(function, workers=1, chunksize=len(NAMES), progress=False, **options).map(NAMES)


def loop(alias):
    """What the tests expect: one transaction, and a block for each object."""
    with transaction.atomic(using=alias):
        for name in NAMES:
            try:
                with transaction.atomic(using=alias):
                    save_all_but_b(name, alias)
            except ValueError:
                pass


def names(alias):
    return sorted(Person.objects.using(alias).values_list("name", flat=True))


@pytest.mark.parametrize("executor", ["serial", "thread"])
def test_objects_of_a_chunk_call_the_same_hooks_as_a_loop(calls, executor, alias):
    loop(alias)
    expected = (calls[:], names(alias))
    Person.objects.using(alias).all().delete()
    calls.clear()
    report = run(lambda name: save_all_but_b(name, alias), executor=executor, transaction="chunk", databases=(alias,))
    assert report.failed == 1
    assert (calls, names(alias)) == expected


def test_a_connection_is_given_back_without_hooks():
    before = set(vars(connections["default"]))
    assert run(save_all_but_b, executor="serial", transaction="chunk").failed == 1
    assert not {name for name in set(vars(connections["default"])) - before if name.startswith("_savepoint")}


@pytest.mark.parametrize("mode", ["object", "chunk"])
def test_a_callback_of_a_patched_atomic_runs_inside_of_it(monkeypatch, mode):
    """As caches do it (django-cacheops): the entry pushes a state, and a callback or else the exit pops it."""
    states, enter, leave = [], transaction.Atomic.__enter__, transaction.Atomic.__exit__

    def pushing(block):
        outermost = not states
        states.append(block)
        enter(block)
        if outermost:
            transaction.on_commit(states.pop)

    def popping(block, *error):
        leave(block, *error)
        if states:
            states.pop()

    monkeypatch.setattr(transaction.Atomic, "__enter__", pushing)
    monkeypatch.setattr(transaction.Atomic, "__exit__", popping)
    report = run(save_all_but_b, executor="serial", transaction=mode)
    assert (report.succeeded, report.failed, report.flawed) == (3, 1, [])
    assert states == []


@pytest.mark.parametrize("mode", ["object", "chunk"])
def test_callback_of_a_patched_atomic_comes_before_its_exit(monkeypatch, mode):
    """Django runs it inside the outermost block's exit. Those of objects run after it."""
    events, enter, leave = [], transaction.Atomic.__enter__, transaction.Atomic.__exit__

    def entering(block):
        outermost = not connections["default"].in_atomic_block
        enter(block)
        if outermost:
            transaction.on_commit(lambda: events.append("of the block"))

    def leaving(block, *error):
        leave(block, *error)
        if not connections["default"].in_atomic_block:
            events.append("left")

    def registers(name):
        Person(name=name).save()
        transaction.on_commit(lambda: events.append(name))

    monkeypatch.setattr(transaction.Atomic, "__enter__", entering)
    monkeypatch.setattr(transaction.Atomic, "__exit__", leaving)
    assert run(registers, executor="serial", transaction=mode).ok
    per_block = [[name] for name in NAMES] if mode == "object" else [NAMES]
    assert events == [event for names in per_block for event in ("of the block", "left", *names)]


@pytest.mark.parametrize("mode", ["object", "chunk"])
@pytest.mark.parametrize("executor", ["serial", "thread"])
def test_a_durable_block_is_refused_with_the_way_out(executor, mode):
    def save(name):
        with transaction.atomic(durable=True):
            Person(name=name).save()

    report = run(save, executor=executor, transaction=mode)
    assert {str(failure.error).count("use transaction=None") for failure in report.failures} == {1}
    assert report.failed == len(NAMES)
    assert run(save, executor=executor, transaction=None).succeeded == len(NAMES)


def test_durable_atomic_inside_atomic_raises_as_in_a_loop():
    def save(name):
        with transaction.atomic(), transaction.atomic(durable=True):
            Person(name=name).save()

    with pytest.raises(RuntimeError) as of_django:
        save("a")
    report = run(save, executor="serial")
    assert {str(failure.error) for failure in report.failures} == {str(of_django.value)}
