"""A backfill is found by its name in any app, and its form decides which rows it has and what its function gets."""

import pytest
from django.utils import timezone

import poolsave
from poolsave.errors import InvalidOperation, InvalidParameters, UnknownBackfill
from poolsave.ledger import registry
from tests import backfills as registered
from tests.models import Thing


def test_backfills_of_apps_are_found_by_name():
    found = registry.backfills()
    assert list(found) == sorted(found)
    assert found["count-visits"].operation is registered.count_visit
    assert registry.find_backfill("count-group").form is registered.GroupForm


def test_an_unknown_name_is_answered_by_the_known_ones():
    with pytest.raises(UnknownBackfill, match="'nothing': give one of 'count-group', 'count-visits'") as caught:
        registry.find_backfill("nothing")
    assert caught.value.known == tuple(registry.backfills())


def test_the_decorator_gives_the_operation_itself(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    operation = poolsave.pooled_operation(str.upper)
    assert poolsave.backfill("upper", queryset=Thing.objects)(operation) is operation


@pytest.mark.parametrize("name", ["", "  ", "a\tb", "a\nb", "x" * 201, None, 7])
def test_a_name_that_cannot_be_one_is_refused(name):
    with pytest.raises(InvalidOperation, match="cannot have the name"):
        poolsave.backfill(name, queryset=Thing.objects)


def test_what_is_no_pooled_operation_is_refused():
    with pytest.raises(InvalidOperation, match="write @backfill above @pooled_operation"):
        poolsave.backfill("plain", queryset=Thing.objects)(str.upper)


def test_a_name_that_is_taken_is_refused_and_both_are_named():
    with pytest.raises(InvalidOperation, match=r"tests\.backfills\.count_visit and tests\.backfills\.count_by"):
        poolsave.backfill("count-visits", queryset=Thing.objects)(registered.count_by)
    assert registry.find_backfill("count-visits").operation is registered.count_visit


def test_a_module_that_is_imported_again_registers_again():
    poolsave.backfill("count-visits", queryset=Thing.objects.all())(registered.count_visit)
    assert registry.find_backfill("count-visits").operation is registered.count_visit


@pytest.mark.django_db(transaction=True)
def test_rows_are_those_of_the_forms_cleaned_data():
    for group in (1, 2, 2):
        Thing.objects.create(group=group)
    found = registry.find_backfill("count-group")
    assert [thing.group for thing in found.rows({"group": "2"})] == [2, 2]
    assert registry.find_backfill("count-visits").rows().count() == 3
    assert registry.find_backfill("fail-in-three-ways").rows().count() == 3  # a manager


def test_parameters_are_cleaned_as_those_of_a_page():
    found = registry.find_backfill("count-group")
    given = {"group": 3, "names": ["a", "b"], "since_0": "2026-11-01", "since_1": "10:30"}
    cleaned = found.cleaned(given)
    assert (cleaned["group"], cleaned["by"], cleaned["names"]) == (3, None, ["a", "b"])
    assert timezone.localtime(cleaned["since"]).strftime("%Y-%m-%d %H:%M") == "2026-11-01 10:30"


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("count-group", {}, "group: This field is required"),
        ("count-group", {"group": "-1"}, "group: Ensure this value is greater"),
        ("count-group", {"group": "1", "other": "2"}, "other: Give one of group, by, names, since"),
        ("count-visits", {"group": "1"}, "group: It takes no parameters"),
    ],
)
def test_parameters_that_the_form_refuses_are_named(name, given, expected):
    with pytest.raises(InvalidParameters, match=expected):
        registry.find_backfill(name).cleaned(given)


def test_only_parameters_that_the_function_names_are_bound():
    found = registry.find_backfill("count-group")
    assert found._bound(found.cleaned({"group": "1", "by": "5"}))._constants == {"by": 5}


def test_rows_that_are_no_queryset_are_refused(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    poolsave.backfill("list", queryset=lambda: [1, 2])(registered.count_visit)
    with pytest.raises(InvalidOperation, match=r"'list' is \[1, 2\]: let it give a queryset"):
        registry._registered["list"].rows()
