"""Saves of one instance come one after the other, as in a loop: one row, with the last value."""

import threading

import pytest

from poolsave import InvalidOperation, concurrent_saves
from tests.models import Badge, Person

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


@pytest.mark.parametrize("executor", ["serial", "thread", "process"])
@pytest.mark.parametrize("chunksize", ["auto", 100])
def test_an_instance_saved_again_is_one_row(executor, chunksize):
    person = Person()
    with concurrent_saves(workers=3, executor=executor, chunksize=chunksize, progress=False) as saves:
        for number in range(5):
            person.name = f"name {number}"
            saves.save(person)
    assert list(Person.objects.values_list("pk", "name")) == [(person.pk, "name 4")]
    assert Badge.objects.count() == 1, "a receiver writes one when a person is created"


def test_threads_that_save_one_instance_make_one_row():
    person, start = Person(name="ann"), threading.Barrier(4)

    def save(saves):
        start.wait(30)
        saves.save(person)

    with concurrent_saves(workers=3, executor="thread", progress=False) as saves:
        threads = [threading.Thread(target=save, args=(saves,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert saves.report.succeeded == 4
    assert (Person.objects.count(), Badge.objects.count()) == (1, 1)


def test_a_callback_saves_the_instance_again():
    person = Person(name="ann")

    def again(future):
        future.result().name = "bea"
        block.save(person)

    with concurrent_saves(workers=2, executor="process", progress=False) as block:
        block.save(person).add_done_callback(again)
    assert list(Person.objects.values_list("pk", "name")) == [(person.pk, "bea")]


def test_save_that_would_wait_for_itself_is_refused():
    person, queued = Person(name="ann"), threading.Event()

    def saves_it_too():
        queued.wait(30)
        saves.save(person)

    options = {"workers": 1, "executor": "thread", "transaction": None, "on_failure": "collect", "progress": False}
    with concurrent_saves(**options) as saves:
        saves.submit(saves_it_too)
        saves.save(person)
        queued.set()
    (failure,) = saves.report.failures
    assert isinstance(failure.error, InvalidOperation)
    assert failure.item is person
    assert Person.objects.count() == 1


def test_unpicklable_save_lets_the_next_one_run():
    person = Person(name="ann")
    with concurrent_saves(workers=1, executor="process", on_failure="collect", progress=False) as saves:
        person.extra = lambda: None
        saves.save(person)
        del person.extra
        saves.save(person)
    assert (saves.report.succeeded, saves.report.failed, Person.objects.count()) == (1, 1, 1)
