"""With `batch_writes`, `save()` goes a shorter way to the buffer, unless a project or a third party has changed it."""

from typing import Any

import pytest
from django.db import models
from django.test.utils import isolate_apps

from tests.models import Thing
from tests.support.comparing import ALIAS, run, run_both

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")

ORDINARY = models.Model._do_insert, models.Model._do_update
asked: list = []
"""What is called of that which the models below have of their own."""


class FewVisited(models.Manager):
    def get_queryset(self):
        return super().get_queryset().filter(visits__lt=5)


class AskedQuerySet(models.QuerySet):
    def _insert(self, *arguments, **options):
        asked.append("insert")
        return super()._insert(*arguments, **options)

    def _update(self, *arguments):
        asked.append("update")
        return super()._update(*arguments)


class AskedModel(models.Model):
    class Meta:
        abstract = True

    def _do_insert(self, *arguments):
        asked.append("insert")
        return super()._do_insert(*arguments)

    def _do_update(self, *arguments):
        asked.append("update")
        return super()._do_update(*arguments)


def on_things(base=models.Model, manager=None, **options):
    """A model of the table of things."""
    names = {"base_manager_name": "objects"} if manager else {}
    meta = type("Meta", (), {"app_label": "tests", "managed": False, "db_table": "tests_thing", **names, **options})
    members: dict[str, Any] = {"__module__": __name__, "Meta": meta, "objects": manager or models.Manager()}
    with isolate_apps("tests"):
        return type(
            "OnThings", (base,), {**members, "visits": models.IntegerField(), "group": models.IntegerField(default=1)}
        )


MODELS = {
    "a base manager that leaves rows out": lambda: on_things(manager=FewVisited()),
    "a base manager with a queryset of its own": lambda: on_things(manager=AskedQuerySet.as_manager()),
    "methods of its own": lambda: on_things(AskedModel),
    "a look before each change": lambda: on_things(select_on_save=True),
}


@pytest.mark.parametrize("own", MODELS)
def test_what_a_model_has_of_its_own_is_asked(own):
    model = MODELS[own]()

    def save_twice(number):
        thing = model(visits=number)
        thing.save(using=ALIAS)
        thing.group = number
        thing.save()

    asked.clear()
    run_both(save_twice, range(10))
    assert asked.count("insert") == asked.count("update")
    assert len(asked) in (0, 40)  # in a run without, and in one with


def save_twice(number):
    thing = Thing(visits=number)
    thing.save(using=ALIAS)
    thing.visits += 1
    thing.save()
    return (models.Model._do_insert, models.Model._do_update) == ORDINARY


def test_djangos_own_methods_are_back_afterwards():
    assert [value for _status, value, *_rest in run(save_twice, range(3), batch_writes=True).outcomes] == [False] * 3
    assert (models.Model._do_insert, models.Model._do_update) == ORDINARY


def test_a_method_that_a_third_party_has_patched_is_asked(monkeypatch):
    def patched(queryset, *arguments, update=models.QuerySet._update):
        asked.append("update")
        return update(queryset, *arguments)

    monkeypatch.setattr(models.QuerySet, "_update", patched)
    asked.clear()
    ran = run(save_twice, range(10), batch_writes=True)
    assert asked == ["update"] * 10
    assert [value for _status, value, *_rest in ran.outcomes] == [True] * 10
    assert (ran.batching.rows, ran.batching.undone) == (20, 0)
