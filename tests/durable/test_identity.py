"""A run goes on with the same function, constants and rows, in any process, and its identity holds no secret."""

import json
from datetime import datetime, timedelta

import pytest
from django.db.models import Exists, OuterRef

from poolsave import InvalidOption, Run, RunConflict, pooled_operation
from tests.models import Thing
from tests.support.durable import counts, ledger, make_things, visited

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")

ONE_ORDER, OTHER_ORDER = set([0, 64]), set([64, 0])  # noqa: C405  a literal's order is the compiler's
"""One value, whose members come in another order, as those of texts do in another process."""
inline = counts.using(executor="serial", databases=("default",), max_failures=1)


def test_orders_of_the_members_differ_here():
    assert ONE_ORDER == OTHER_ORDER
    assert repr(ONE_ORDER) != repr(OTHER_ORDER)


def filtered(members):
    inner = Thing.objects.filter(pk=OuterRef("pk"), visits__in=members)
    return Thing.objects.filter(Exists(inner), pk__lt=50, visits__in=members)


def test_sets_are_the_same_in_each_process():
    make_things("default", 9).filter(pk=4).update(group=5)
    assert inline.bind(bad=ONE_ORDER).map(filtered(ONE_ORDER), run="sets").run.status == "paused"
    report = inline.bind(bad=OTHER_ORDER).map(filtered(OTHER_ORDER), run="sets")
    assert (report.run.status, sum(visited("default").values())) == ("finished with failures", 8)


@pytest.mark.parametrize(
    ("bound", "rows", "entry"),
    [
        ({"bad": [1]}, filtered({0, 8}), "constants"),
        ({"bad": {8, 1}}, filtered({0, 8}), "constants"),
        ({"bad": {0, 8}}, filtered({0, 9}), "rows"),
        ({"bad": {0, 8}}, filtered({0, 8}).filter(pk__gt=1), "rows"),
    ],
)
def test_other_members_are_another_run(bound, rows, entry):
    make_things("default", 9).filter(pk=4).update(group=5)
    inline.bind(bad={0, 8}).map(filtered({0, 8}), run="members")
    with pytest.raises(RunConflict) as caught:
        inline.bind(**bound).map(rows, run="members")
    assert caught.value.entry == entry


@pooled_operation(executor="serial", databases=("default",), max_failures=1, progress=False)
def configured(row, options=None, table=(), api_key=""):
    """Takes what is long, and what is secret."""
    raise ValueError(api_key and "no")


def test_identity_holds_no_secret_and_nothing_long():
    rows = make_things("default", 2)
    options = {"url": "mail.example", "password": "hunter2"}
    bound = configured.bind(options=options, table=range_list(30_000), api_key="hunter3")
    bound.map(rows, run="secrets")
    stored = json.dumps(ledger("default", "secrets")[0].identity)
    assert "hunter" not in stored
    assert "mail.example" in stored
    assert len(stored) < 3000
    for other in ({"api_key": "hunter4"}, {"table": range_list(30_001)}, {"options": {**options, "password": "no"}}):
        with pytest.raises(RunConflict) as caught:
            bound.bind(**other).map(rows, run="secrets")
        assert len(str(caught.value)) < 1500
        assert "hunter" not in str(caught.value)
    assert bound.map(rows, run="secrets").run.done == 0


def range_list(length):
    return [*range(length)]


@pytest.mark.parametrize(
    "options",
    [
        {"retry": "ValueError"},
        {"retry": {"casue": "ValueError"}},
        {"retry": {"cause": ValueError}},
        {"retry": {"since": "yesterday"}},
        {"retry": {"since": 5}},
        {"retry": {"keys": "17"}},
        {"retry": {"keys": [None]}},
        {"retry": {"limit": 0}},
        {"retry": {"upto": "5"}},
        {"stale_after": "60"},
        {"stale_after": float("nan")},
        {"slice": "5"},
        {"name": "a\x00b"},
        {"name": "caf\udce9"},
    ],
)
def test_wrong_options_are_refused_by_the_caller(options):
    with pytest.raises(InvalidOption):
        Run(**{"name": "options", **options})


@pytest.mark.parametrize("since", [timedelta(hours=1), datetime(2020, 1, 1), "2020-01-01T00:00:00+00:00"])  # noqa: DTZ001
def test_retry_takes_times_and_numbers_as_they_come(since):
    rows = make_things("default", 3)
    rows.update(group=5)
    operation = inline.using(max_failures=None)
    operation.map(rows, run="retried")
    rows.update(group=0)
    report = operation.map(rows, run=Run("retried", retry={"since": since, "keys": [3, "1"], "limit": None}))
    assert (report.total, report.succeeded, visited("default")) == (2, 2, {1: 1, 2: 0, 3: 1})


@pooled_operation(executor="serial", databases=("default",), progress=False)
def passes(item):
    """Does nothing."""


def test_keys_that_are_not_unicode_are_kept_apart():
    make_things("default", 1)
    names = ["a", "caf\udce9", "nul \x00", "€"]
    run = Run("names", key=lambda item: item)
    assert passes.map(names, run=run).run.done == 4
    assert [json.loads(high) for _low, high, *_counts in ledger("default", "names")[1]] == names[-1:]
