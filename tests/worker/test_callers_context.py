"""A worker has the caller's language, time zone, precision and URLs, and none of its context variables unless they are
carried: the same in every kind of worker."""

import decimal
import sys
from contextvars import ContextVar
from types import ModuleType

import pytest
from django.db import transaction
from django.urls import get_script_prefix, get_urlconf, set_script_prefix, set_urlconf
from django.utils import timezone, translation

from poolsave import concurrent_saves
from poolsave._worker.context import _reference
from tests.models import actor
from tests.support.operations import pure, saving

WORKERS = {
    "thread": {"executor": "thread"},
    "fork": {"start_method": "fork"},
    "forkserver": {"start_method": "forkserver"},
    "forked pool": {"executor": "process-pool", "start_method": "fork"},
}


@pytest.fixture(params=WORKERS)
def workers(request):
    return WORKERS[request.param]


@pure
def in_force(_item=None):
    return (
        translation.get_language(),
        translation.gettext("Monday"),
        str(timezone.get_current_timezone()),
        decimal.getcontext().prec,
        get_script_prefix(),
        get_urlconf(),
    )


@pure
def actors_name(_item):
    return actor.get(None)


@saving
def notes_languages(found):
    found.append(translation.get_language())
    transaction.on_commit(lambda: found.append(translation.get_language()))


@pytest.fixture
def urls():
    set_script_prefix("/shop/")
    set_urlconf("tests.urls")
    yield
    set_script_prefix("/")
    set_urlconf(None)


def test_language_time_zone_precision_and_urls_go_along(workers, urls):
    with translation.override("de"), timezone.override("Europe/Lisbon"), decimal.localcontext(prec=50):
        expected = in_force()
        report = in_force.using(**workers).map([1, 2])
    assert expected == ("de", "Montag", "Europe/Lisbon", 50, "/shop/", "tests.urls")
    assert report.values == [expected] * 2


def test_translations_that_are_off_stay_off(workers, settings):
    settings.LANGUAGE_CODE = "de"
    with translation.override(None):  # as manage.py migrate does
        report = in_force.using(**workers).map([1])
    assert [value[:2] for value in report.values] == [(None, "Monday")]


def test_context_variables_stay_behind_unless_carried(workers):
    token = actor.set("ann")
    found = [actors_name.using(**workers, carry=carry).map([1]).values for carry in ((), [actor])]
    actor.reset(token)
    assert found == [[None], ["ann"]]


@pytest.mark.parametrize("executor", ["serial", "thread", "process"])
def test_a_block_call_has_the_language_of_its_submission(executor):
    with concurrent_saves(workers=2, executor=executor, transaction=None, progress=False) as saves:
        futures = []
        for language in ("en", "de", None, "fr"):
            with translation.override(language):
                futures.append(saves.submit(in_force))
        with timezone.override("Europe/Lisbon"):
            elsewhere = saves.submit(in_force)
        texts = [future.result(30)[1] for future in futures]
    assert texts == ["Monday", "Montag", "Monday", "lundi"]
    assert elsewhere.result()[2] == "Europe/Lisbon"


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_callbacks_have_the_language_of_their_submission():
    found = []
    with concurrent_saves(workers=1, executor="thread", progress=False) as saves:
        with translation.override("de"):
            saves.submit(notes_languages, found)
    assert found == ["de", "de"]


def a_module(name, **names):
    module = ModuleType(name)
    vars(module).update(names)
    return module


def test_a_variable_is_named_by_the_module_that_defines_it(monkeypatch):
    variable = ContextVar("variable")
    home = a_module("the_home", variable=variable, ContextVar=ContextVar)
    others = {
        "__main__": a_module("__main__", variable=variable, ContextVar=ContextVar),
        "__mp_main__": a_module("__mp_main__", variable=variable, ContextVar=ContextVar),
        "a_user": a_module("a_user", variable=variable),
        "an_alias": home,
        "the_home": home,
    }
    home.__spec__ = type("Spec", (), {"name": "the_home"})
    for name, module in others.items():
        monkeypatch.setitem(sys.modules, name, module)
    assert _reference(variable) == ("the_home", "variable")
