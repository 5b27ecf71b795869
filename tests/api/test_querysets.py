"""`op.map(queryset)`: the caller reads keys, workers fetch their own rows, and each row is visited once."""

import re
import uuid
import warnings
from contextvars import ContextVar

import pytest
from django.db import connections, transaction
from django.db.models import Count, F, Prefetch, Window
from django.db.models.functions import RowNumber
from django.test.utils import CaptureQueriesContext

from poolsave import InsideTransaction, InvalidOperation, OperationsFailed, RowGone, Status, concurrent_saves
from tests.models import (
    Person,
    SoftThing,
    SpecialThing,
    Tag,
    Thing,
    ThingByPair,
    ThingByText,
    ThingByUuid,
    ThingOfGroupOne,
)
from tests.support import operations, pools

ACTOR = ContextVar("ACTOR", default=None)

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


@pytest.fixture(params=["serial", "thread", "fork", "forkserver", "spawn"])
def place(request):
    return pools.POOLS[request.param]


def make(model, alias, count):
    """Rows with keys of the model's kind, in no order and with gaps."""
    keys = {
        Thing: lambda number: {"pk": 3 * number + 1},
        ThingOfGroupOne: lambda number: {"pk": 3 * number + 1},
        ThingByUuid: lambda number: {"pk": uuid.uuid5(uuid.NAMESPACE_OID, str(number))},
        ThingByText: lambda number: {"pk": ["a", "B", "ä", "Z", "zz", "0", "'", "%"][number % 8] + str(number)},
        ThingByPair: lambda number: {"left": number // 4, "right": str(number * 7 % 10)},
    }[model]
    model.objects.using(alias).bulk_create([model(group=number % 3, **keys(number)) for number in range(count)])
    return model.objects.using(alias)


def visits(rows):
    return list(rows.order_by("pk").values_list("visits", flat=True))


@pytest.mark.parametrize("model", [Thing, ThingByUuid, ThingByText, ThingByPair, ThingOfGroupOne])
def test_every_row_is_visited_once_whatever_its_key(model, alias, pages_of):
    pages_of(7)
    rows = make(model, alias, 25)
    operation = operations.visit.using(databases=(alias,), workers=2, chunksize=4, start_method="fork")
    report = operation.bind(alias=alias).map(rows.all())
    assert (report.succeeded, report.total) == (25, 25)
    assert visits(rows) == [1] * 25
    assert report.values == list(rows.order_by("pk").values_list("pk", flat=True))


def test_multi_table_inheritance(alias):
    for number in range(6):
        SpecialThing.objects.using(alias).create(group=number, extra=number)
    rows = SpecialThing.objects.using(alias)
    report = operations.visit.using(databases=(alias,), chunksize=2).bind(alias=alias).map(rows.filter(group__gte=2))
    assert report.succeeded == 4
    assert visits(rows) == [0, 0, 1, 1, 1, 1]


def test_workers_use_the_filters_joins_and_annotations_of_rows(place, alias):
    make(Thing, alias, 9)
    owner = Person.objects.using(alias).create(name="owner")
    tags = [Tag.objects.using(alias).create(name=name) for name in "ab"]
    for row in Thing.objects.using(alias).filter(group=1):
        row.tags.set(tags)
        row.owner = owner
        row.save()
    rows = (
        Thing.objects.using(alias)
        .filter(group=1)
        .select_related("owner")
        .prefetch_related(Prefetch("tags", queryset=Tag.objects.using(alias).filter(name="a")))
        .alias(twice=F("pk") * 2)
        .annotate(doubled=F("twice") + F("group"))
        .filter(twice__gt=2)
        .defer("visits")
    )
    operation = operations.look.using(**place, databases=(alias,), chunksize=2).bind(alias=alias)
    report = operation.map(rows)
    assert report.total == 3
    assert [value.pop("doubled") for value in report.values] == list(
        rows.order_by("pk").values_list("doubled", flat=True)
    )
    expected = {
        "owner": "owner",
        "tags": ["a"],
        "deferred": ["visits"],
        "database": alias,
        "class": "Thing",
        "queries": 0,
    }
    assert report.values == [expected] * 3


def test_a_proxy_s_instances_are_of_the_proxy(alias):
    make(Thing, alias, 2)
    report = operations.look.using(databases=(alias,)).bind(alias=alias).map(ThingOfGroupOne.objects.using(alias))
    assert [value["class"] for value in report.values] == ["ThingOfGroupOne"] * 2


def test_the_caller_reads_nothing_but_keys_and_never_by_offset(alias, pages_of):
    pages_of(10)
    rows = make(Thing, alias, 35)
    with CaptureQueriesContext(connections[alias]) as queries:
        operations.visit.using(databases=(alias,), start_method="fork").bind(alias=alias).map(rows.filter(group__lt=3))
    asked = [query["sql"] for query in queries if query["sql"].startswith("SELECT")]
    assert len(asked) == 1 + 4  # the largest key, and four pages
    for sql in asked:
        assert '"visits"' not in sql
        assert "OFFSET" not in sql.upper()
        assert "LIMIT" in sql


def test_the_work_may_change_what_the_filter_finds(alias, pages_of):
    pages_of(5)
    rows = make(Thing, alias, 33)
    operation = operations.visit.using(databases=(alias,), workers=2, chunksize=3).bind(alias=alias)
    assert operation.map(rows.filter(visits=0)).succeeded == 33
    assert visits(rows) == [1] * 33


@pytest.mark.parametrize("mode", ["object", "chunk"])
def test_rows_that_are_gone_or_no_longer_match_are_skipped(place, mode):
    make(Thing, "default", 12)
    rows = Thing.objects.filter(group__lt=3)
    operation = operations.visit.using(**place, transaction=mode, chunksize=12, workers=1, window=12)
    run = operation.stream(rows)  # the keys are read at this moment, and the rows later
    Thing.objects.filter(pk__in=[4, 19]).delete()
    Thing.objects.filter(pk=7).update(group=3)
    outcomes = sorted(run, key=lambda outcome: outcome.index)
    skipped = [outcome for outcome in outcomes if outcome.status is Status.SKIPPED]
    assert [outcome.item for outcome in skipped] == [4, 7, 19]
    assert all(isinstance(outcome.error, RowGone) for outcome in skipped)
    assert "tests.Thing is gone, or no longer matches" in str(skipped[0].error)
    assert {outcome.attempts for outcome in skipped} == {0}
    assert [outcome.status for outcome in outcomes].count(Status.SUCCEEDED) == 9


def test_rows_that_come_while_it_runs_are_left_for_the_next_run(pages_of):
    pages_of(4)
    rows = make(Thing, "default", 8)
    operation = operations.visit.using(executor="serial", chunksize=2)
    for outcome in operation.stream(rows.all()):
        Thing.objects.create(pk=1000 + outcome.index)
    assert visits(rows.filter(pk__lt=1000)) == [1] * 8
    assert visits(rows.filter(pk__gte=1000)) == [0] * 8


def test_a_row_that_is_found_several_times_is_visited_once(pages_of):
    pages_of(3)
    rows = make(Thing, "default", 5)
    tags = [Tag.objects.create(name=name) for name in "abcd"]
    for row in rows.all():
        row.tags.set(tags)
    assert operations.visit.using(chunksize=2).map(rows.filter(tags__name__in=list("abcd"))).succeeded == 5
    assert visits(rows) == [1] * 5
    assert operations.visit.map(rows.annotate(n=Count("tags")).filter(n=4).distinct()).succeeded == 5
    assert visits(rows) == [2] * 5


@pytest.mark.parametrize("mode", ["object", "chunk"])
def test_failed_row_is_known_by_its_key_and_can_be_fed_again(place, mode):
    rows = make(Thing, "default", 10)
    operation = operations.visit_or_fail.using(**place, transaction=mode, chunksize=4)
    report = operation.bind(bad=[4, 13]).map(rows.all())
    assert [failure.item for failure in report.failures] == [4, 13]
    assert report.succeeded == 8
    again = operation.bind(bad=[]).map(report.failed_items())
    assert sorted(again.values) == [4, 13]
    assert again.succeeded == 2
    assert visits(rows) == [1] * 10


@pytest.mark.parametrize("mode", ["object", "chunk"])
def test_retry_begins_with_the_row_as_it_is_in_the_database(mode):
    """The second try must not save an instance that the first one has changed."""
    operations._tried.clear()
    make(Thing, "default", 3)
    operation = operations.visit_and_save_at_second_try.using(executor="serial", transaction=mode, chunksize=3)
    report = operation.map(Thing.objects.all())
    assert report.ok
    assert visits(Thing.objects) == [1, 1, 1]


@pytest.mark.parametrize("order", [("pk",), ()])
def test_reversed_querysets(order, pages_of):
    pages_of(5)
    rows = make(Thing, "default", 23)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        assert operations.visit.map(rows.order_by(*order).reverse()).succeeded == 23
    assert visits(rows) == [1] * 23


def test_rows_that_every_manager_but_one_hides():
    """The largest key is that of a row which the model's base manager leaves out."""
    SoftThing.everything.bulk_create([SoftThing(pk=pk, group=9 if pk > 5 else 0) for pk in range(1, 11)])
    assert operations.visit_hidden.map(SoftThing.everything.all()).succeeded == 10
    assert operations.visit_hidden.map(SoftThing.everything.filter(group=9)).succeeded == 5
    assert operations.visit_hidden.map(SoftThing.objects.all()).succeeded == 5
    assert sorted(SoftThing.everything.values_list("visits", flat=True)) == [2] * 10


def test_queryset_on_a_database_not_in_databases_warns():
    make(Thing, "second", 1)
    with pytest.warns(RuntimeWarning, match="would be saved on 'second'"):
        operations.visit.bind(alias="second").map(Thing.objects.using("second"))
    operations.visit.using(databases=("second",)).bind(alias="second").map(Thing.objects.using("second"))


def test_unfetchable_range_leaves_the_outer_transaction_alone():
    """The transaction is the caller's own."""
    rows = make(Thing, "postgres", 6)
    divided = rows.annotate(bad=6 / (F("pk") - 7))  # an error for one of them
    operation = operations.visit.using(executor="serial", databases=("postgres",)).bind(alias="postgres")
    with transaction.atomic(using="postgres"):
        report = operation.map(divided)
        assert [failure.item for failure in report.failures] == [7], report.failures[0].traceback
        assert "division by zero" in str(report.failures[0].error)
    assert visits(rows) == [1, 1, 0, 1, 1, 1]


@pytest.mark.parametrize("executor", ["fork", "serial"])
def test_an_undone_chunk_is_run_again_with_the_rows_of_then(executor):
    """Also with context, where each object fetches its own row."""
    operations._tried.clear()
    make(Thing, "postgres", 4)
    operation = operations.visits_what_another_changed.using(
        **pools.POOLS[executor], databases=("postgres",), transaction="chunk", chunksize=4, workers=1, carry=[ACTOR]
    )
    assert operation.map(Thing.objects.using("postgres")).ok
    assert visits(Thing.objects.using("postgres")) == [1, 1, 1, 101]


def test_rows_of_a_block_are_fresh_and_their_failures_their_own():
    """The call for the first row changes the second row, whose own call must not overwrite that."""
    make(Thing, "default", 3)
    with concurrent_saves(workers=1, on_failure="collect", progress=False) as saves:
        report = saves.map(operations.tells_the_next_row, Thing.objects.all())
    assert report.ok
    assert visits(Thing.objects) == [1, 11, 11]
    make_bad = Thing.objects.using("postgres").bulk_create([Thing(pk=pk) for pk in (1, 2, 3)])
    assert len(make_bad) == 3
    with concurrent_saves(databases=("postgres",), on_failure="collect", progress=False) as saves:
        report = saves.map(
            operations.visit.bind(alias="postgres"), Thing.objects.using("postgres").annotate(bad=1 / (F("pk") - 2))
        )
    assert [failure.item for failure in report.failures] == [2]


def test_rows_of_a_block_are_locked_in_their_own_transaction():
    make(Thing, "postgres", 8)
    with concurrent_saves(
        databases=("postgres",), transaction="chunk", chunksize=4, on_failure="collect", progress=False
    ) as saves:
        report = saves.map(
            operations.is_locked.bind(alias="postgres"), Thing.objects.using("postgres").select_for_update()
        )
    assert report.values == [True] * 8


@pytest.mark.parametrize("mode", ["object", "chunk"])
def test_queryset_in_a_block_visits_each_row_once(place, alias, mode):
    rows = make(Thing, alias, 30)
    with concurrent_saves(
        **place, workers=2, databases=(alias,), transaction=mode, on_failure="collect", progress=False
    ) as saves:
        report = saves.map(operations.visit_or_fail.bind(bad=[4, 13], alias=alias), rows.filter(group__lt=2))
    assert (report.total, report.succeeded) == (20, 18)
    assert sorted(failure.item for failure in report.failures) == [4, 13]
    assert visits(rows.filter(group__lt=2).exclude(pk__in=[4, 13])) == [1] * 18
    assert visits(report.failed_items()) == [0, 0]
    assert saves.report.total == 20


@pytest.mark.parametrize(
    ("unsuitable", "told"),
    [
        (lambda rows: rows.all()[:5], "sliced"),
        (lambda rows: rows.values("pk"), "values()"),
        (lambda rows: rows.values_list("pk", flat=True), "values()"),
        (lambda rows: rows.filter(pk=1).union(rows.filter(pk=2)), "union()"),
        (lambda rows: rows.distinct("group"), "distinct() on fields"),
        (lambda rows: rows.annotate(n=Window(RowNumber(), order_by="pk")).filter(n=1), "window function"),
        (lambda rows: rows.select_for_update(), "select_for_update()"),
    ],
)
def test_queryset_without_contiguous_ranges_is_refused(unsuitable, told):
    with pytest.raises(InvalidOperation, match="cannot be mapped") as caught:
        operations.visit.map(unsuitable(Thing.objects.using("postgres")))
    assert told in str(caught.value)


def test_rows_can_be_locked_in_the_transaction_of_their_chunk():
    rows = make(Thing, "postgres", 5)
    operation = operations.visit.using(databases=("postgres",), transaction="chunk").bind(alias="postgres")
    assert operation.map(rows.select_for_update()).succeeded == 5


def test_an_ordering_is_ignored_with_one_warning():
    rows = make(Thing, "default", 20)
    with pytest.warns(RuntimeWarning, match="ordering of this queryset is ignored") as caught:
        report = operations.visit.using(chunksize=2).map(rows.order_by("-group"))
    assert [warning.category for warning in caught].count(RuntimeWarning) == 1
    assert caught[0].filename == __file__
    assert report.values == sorted(report.values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        operations.visit.map(rows.order_by("pk"))
        operations.visit.map(ThingOfGroupOne.objects.all())  # a default ordering was asked for by nobody


def test_a_manager_stands_for_all_its_rows():
    rows = make(Thing, "default", 3)
    assert operations.visit.map(Thing.objects).succeeded == 3
    assert visits(rows) == [1] * 3


def test_a_model_in_the_place_of_its_rows_is_refused():
    message = "the model Tag itself cannot be mapped: give its rows, such as Tag.objects.all()"
    operation = operations.doubles.using(transaction="object")
    pipeline = operation | operation
    for use in (operation.map, operation.dry_run, pipeline.map, pipeline.dry_run):
        with pytest.raises(InvalidOperation, match=re.escape(message)):
            use(Tag)
    with concurrent_saves(executor="serial") as saves, pytest.raises(InvalidOperation, match=re.escape(message)):
        saves.map(operation, Tag)
    for checked in (operation, pipeline):
        assert [(found.id, found.msg) for found in checked.check(Tag)] == [("poolsave.E002", message)]


def test_failures_of_rows_name_their_keys():
    make(Thing, "default", 3)
    report = operations.visit_or_fail.bind(bad=[4]).map(Thing.objects.order_by("pk"))
    assert "first at index 1 (pk 4): not 4" in str(report)
    with pytest.raises(OperationsFailed) as caught:
        report.raise_if_failed()
    assert caught.value.exceptions[0].__notes__ == ["poolsave: object 1 (pk 4), failed"]


def test_no_rows_need_no_worker(place):
    def begin():
        raise AssertionError("a worker is started")

    operation = operations.visit.using(**place, before_fork=begin)
    for nothing in (Thing.objects.all(), Thing.objects.none(), []):
        report = operation.map(nothing)
        assert (report.total, report.ok) == (0, True)
    if place.get("executor") == "process":
        with pytest.raises(AssertionError, match="is started"):
            operation.map([1])


def test_a_query_that_cannot_work_is_refused_in_the_caller():
    make(Thing, "default", 1)
    with pytest.raises(Exception, match="no such column"):
        operations.visit.map(Thing.objects.extra(where=["absent = 1"]))


def test_queryset_of_a_database_in_a_transaction_is_refused():
    make(Thing, "second", 2)
    with transaction.atomic(using="second"), pytest.raises(InsideTransaction):
        operations.visit.using(transaction=None).map(Thing.objects.using("second"))


def test_total_is_counted_for_a_progress_callable():
    make(Thing, "postgres", 30)
    told = []
    operation = operations.visit.using(databases=("postgres",), progress=lambda done, total: told.append((done, total)))
    operation.bind(alias="postgres").map(Thing.objects.using("postgres").filter(group=0))
    assert told[-1] == (10, 10)
