"""Failures go to a file, and their items come back from it equal and of the same class, or are refused by name."""

import collections
import csv
import datetime as dt
import decimal
import enum
import json
import math
import sys
import threading
import uuid
import zoneinfo
from pathlib import Path

import pytest
from django.utils.safestring import mark_safe
from hypothesis import given
from hypothesis import strategies as st

from poolsave import DROP, InvalidOperation, InvalidOption, load_items, pooled_operation
from tests.models import Person
from tests.support import operations, pools, stages

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


@pooled_operation(executor="serial", transaction=None, progress=False)
def fails(_item):
    raise ValueError("no")


@pooled_operation(executor="serial", transaction=None, progress=False)
def fails_spread(*_positional, **_named):
    raise ValueError("no")


@pytest.fixture(params=["csv", "json"])
def path(request, tmp_path):
    return tmp_path / f"failures.{request.param}"


def write(report, path):
    (report.to_csv if path.suffix == ".csv" else report.to_json)(path, only="failures")


def there_and_back(items, path):
    write(fails.map(items), path)
    return load_items(path)


EXACT = {
    "row": {"name": "Ann", "age": 3, "tags": ["a", None, True], "share": 0.1},
    "nothing": None,
    "truth": False,
    "text": "=1+1, \"quoted\"\r\n'and' \u2028 more",
    "surrogate": "a\udcff",
    "two halves": "\ud83d\ude00",
    "key of a surrogate": {"\udcff": 1},
    "negative": -5,
    "huge": 16**5000,
    "negative huge": -(16**5000),
    "tuple": (1, ("a", [2])),
    "bytes": b"\x00\xff",
    "date": dt.date(2026, 1, 2),
    "moment": dt.datetime(2026, 1, 2, 3, 4, 5, 678901),  # noqa: DTZ001
    "utc": dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
    "fixed offset": dt.datetime(2026, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=-3, microseconds=1))),
    "zone": dt.datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1),
    "time": dt.time(1, 2, 3, 4),
    "duration": dt.timedelta(days=-1, microseconds=1),
    "decimal": decimal.Decimal("1.50"),
    "decimal infinity": decimal.Decimal("-Infinity"),
    "uuid": uuid.UUID(int=7),
    "path": Path("incoming/a\udcff.csv"),
    "set": {1, "a"},
    "frozen": {frozenset({1}): "a"},
    "keys": {1: "a", "1": "b", (1, 2): "c", None: "d"},
    "tag": {"$tuple": [1]},
    "dollar": {"$": 1, "$date": "2026-01-02"},
    "empty": {},
    "long": "x" * 200_000,
}


def parts(value):
    """Give a value with the class of each of its parts, as 1 == 1.0, and moments of one instant are equal."""
    if isinstance(value, dict):
        return dict, [(parts(key), parts(element)) for key, element in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [parts(element) for element in value]
    if isinstance(value, dt.datetime):
        return value.replace(tzinfo=None), value.fold, value.tzinfo
    return type(value), value


def test_items_come_back_equal_and_of_the_same_class(path):
    assert parts(there_and_back(EXACT.values(), path)) == parts(list(EXACT.values()))


def test_what_is_not_equal_to_itself_comes_back(path):
    numbers = there_and_back([math.nan, {"a": [-math.inf, math.inf]}, decimal.Decimal("NaN"), -0.0], path)
    assert str(numbers) == "[nan, {'a': [-inf, inf]}, Decimal('NaN'), -0.0]"


class Size(enum.IntEnum):
    SMALL = 1


class Colour(enum.StrEnum):
    RED = "red"


def test_subclasses_of_texts_and_numbers_come_back_plain(path):
    items = there_and_back([Size.SMALL, Colour.RED, mark_safe("<b>"), {Colour.RED: Size.SMALL}], path)
    assert parts(items) == parts([1, "red", "<b>", {"red": 1}])


class Untellable:
    def __repr__(self):
        raise ValueError("no repr")


Point = collections.namedtuple("Point", "x y")  # noqa: PYI024  not typed
circular = [1]
circular.append(circular)
deep = []
for _ in range(1000):
    deep = [deep]
REFUSED = {
    "object": (Untellable(), "tests.reports.test_items.Untellable"),
    "within": ({"a": (1, [Untellable()])}, "tests.reports.test_items.Untellable"),
    "circular": (circular, "builtins.list"),
    "deep": (deep, "builtins.list"),
    "named tuple": (Point(1, 2), "tests.reports.test_items.Point"),
    "lock": (threading.Lock(), "_thread.lock"),
    "model instance": (Person(name="ann"), "tests.models.Person"),
    "complex": (1j, "builtins.complex"),
    "time with a zone": (dt.time(1, 2, tzinfo=dt.UTC), "datetime.time"),
    "zone without a name": (
        dt.datetime(2026, 1, 2, tzinfo=type("Odd", (dt.tzinfo,), {"utcoffset": lambda *_: dt.timedelta(0)})()),
        "datetime.datetime",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_items_are_refused_by_index_and_class(path, name):
    item, class_path = REFUSED[name]
    write(fails.map(["fine", item, "fine, too"]), path)
    with pytest.raises(InvalidOperation, match=rf"the item at index 1 .* of {class_path}, of which the file has only"):
        load_items(path)


def test_each_row_of_a_file_with_odd_items_is_whole(path):
    items = [*EXACT.values(), *(item for item, _class_path in REFUSED.values())]
    write(fails.map(items), path)
    if path.suffix == ".json":
        rows = json.loads(path.read_text())["outcomes"]
    else:
        before = csv.field_size_limit(10**6)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        csv.field_size_limit(before)
        assert not any(cell.startswith(("=", "+", "@")) for row in rows for cell in row.values())
    assert [int(row["index"]) for row in rows] == list(range(len(items)))


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()) | st.binary()
    | st.dates() | st.datetimes(timezones=st.none() | st.just(dt.UTC) | st.just(BERLIN)) | st.times() | st.timedeltas()
    | st.decimals(allow_nan=False) | st.uuids()
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda values: (
        st.lists(values)
        | st.lists(values).map(tuple)
        | st.dictionaries(st.text(st.characters(), max_size=3) | st.integers() | st.tuples(st.integers()), values)
    ),
    max_leaves=8,
)


@given(st.lists(VALUES, max_size=3))
def test_any_nesting_of_them_comes_back(tmp_path_factory, items):
    folder = tmp_path_factory.mktemp("files")
    for name in ("failures.csv", "failures.json"):
        assert parts(there_and_back(items, folder / name)) == parts(items)


def test_arguments_come_back_for_starmap(path):
    argument_sets = [(1, "a"), {"row": 2}]
    write(fails_spread.starmap(argument_sets), path)
    assert load_items(path) == argument_sets


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_failures_run_again_save_what_was_missing(path, alias):
    names = [f"p{number}" for number in range(6)]
    saving = operations.save_person.using(executor="thread", databases=(alias,))
    saving.bind(alias=alias, fail=("p1", "p4")).map(names)
    first = saving.bind(alias=alias, fail=("q1", "q4")).map([f"q{number}" for number in range(6)])
    write(first, path)
    assert load_items(path) == first.failed_items() == ["q1", "q4"]
    again = saving.bind(alias=alias).map(load_items(path))
    assert again.ok
    saved = Person.objects.using(alias).filter(name__startswith="q").values_list("name", flat=True)
    assert sorted(saved) == [f"q{number}" for number in range(6)]


@pytest.mark.django_db(transaction=True, databases=["default", "postgres"])
def test_of_rows_the_keys_come_back(path):
    people = Person.objects.using("postgres")
    keys = [people.create(name=name).pk for name in "abc"]
    report = fails.using(executor="serial").map(people.order_by("pk"))
    write(report, path)
    assert load_items(path) == keys == [person.pk for person in report.failed_items()]


def test_lost_objects_do_not_come_back(path):
    report = operations.kills_itself.using(**pools.POOLS["fork"], chunksize=1).map(range(5))
    assert report.lost == 1
    write(report, path)
    assert load_items(path) == report.failed_items() == []


@pytest.mark.django_db(transaction=True)
def test_saved_objects_of_a_pipeline_do_not_come_back(path):
    @pooled_operation(transaction=None, progress=False)
    def fails_first(name):
        if name == "bad":
            raise ValueError(name)
        return DROP if name == "dropped" else name

    report = (fails_first | operations.save_person | fails).using(executor="serial").map(["a", "bad", "dropped"])
    assert (report.failed, report.dropped) == (2, 1)
    write(report, path)
    assert load_items(path) == report.failed_items() == ["bad"]


def test_object_with_several_failures_comes_back_once(path):
    report = (stages.twice | fails).using(executor="serial").map([3, 4])
    assert report.failed == 4
    write(report, path)
    assert load_items(path) == report.failed_items() == [3, 4]


def test_a_file_edited_by_a_spreadsheet_is_read(tmp_path):
    fails.map([{"name": "Ann"}, -5]).to_csv(tmp_path / "failures.csv", only="failures")
    with open(tmp_path / "failures.csv", newline="") as file:
        rows = list(csv.reader(file))
    with open(tmp_path / "edited.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=";", quoting=csv.QUOTE_ALL).writerows(rows)
    assert load_items(tmp_path / "edited.csv") == [{"name": "Ann"}, -5]


def test_broken_or_other_files_are_refused(path, tmp_path):
    report = fails.map([{"name": "Ann"}, "b"])
    (report.to_csv if path.suffix == ".csv" else report.to_json)(path)
    with pytest.raises(InvalidOperation, match=r"was not written for this: write it by report.to_csv\(path, only="):
        load_items(path)
    write(report, path)
    path.write_text(path.read_text()[:-60])
    with pytest.raises(InvalidOperation, match=f"'{path}' is no whole file of to_{path.suffix[1:]}"):
        load_items(path)
    with pytest.raises(FileNotFoundError):
        load_items(tmp_path / "nowhere")


def test_only_takes_nothing_but_failures(path):
    with pytest.raises(InvalidOption, match=r"""only='failure' is not valid: give "failures" or None"""):
        fails.map([1]).to_json(path, only="failure")
    assert not path.exists()


def test_failures_that_a_stream_omits_are_not_left_out_silently(path):
    with fails.stream(range(1001)) as outcomes:
        for _outcome in outcomes:
            pass
    with pytest.raises(InvalidOperation, match="the file would leave out 1 failures"):
        write(outcomes.report, path)
    assert not path.exists()


def test_numbers_are_read_under_pythons_lowest_limit(path):
    before = sys.get_int_max_str_digits()
    try:
        sys.set_int_max_str_digits(640)
        assert there_and_back([10**700, 10**600], path) == [10**700, 10**600]
    finally:
        sys.set_int_max_str_digits(before)


@pooled_operation(transaction=None, progress=False)
def gives_a_lock(_item):
    return threading.Lock()


class Unpicklable:
    def __init__(self, number):
        self.number = number
        self.lock = threading.Lock()

    def __repr__(self):
        return f"<Unpicklable\n{self.number}>"


def test_printed_report_names_the_first_item_of_a_cause():
    text = str(fails.map(["a" * 200, "b"]))
    assert f"2 x ValueError, first at index 0 ('{'a' * 79}...): no" in text


@pytest.mark.parametrize(("operation", "items", "about"), [
    (operations.doubles, [1, Unpicklable(7)], "this is about the object itself, which cannot be sent to a worker"),
    (gives_a_lock, [1], "this is about the return value, which cannot come back from the worker"),
])  # fmt: skip
def test_printed_report_says_what_could_not_be_pickled(operation, items, about):
    lines = str(operation.using(start_method="fork").map(items)).splitlines()
    (at,) = [number for number, line in enumerate(lines) if "TypeError, first at index" in line]
    assert "cannot pickle '_thread.lock' object" in lines[at]
    assert lines[at + 1].strip() == about
    if len(items) == 2:
        assert "first at index 1 (<Unpicklable 7>):" in lines[at]


def test_file_in_another_encoding_is_refused(tmp_path):
    """As a spreadsheet may save it."""
    path = tmp_path / "failures.csv"
    write(fails.map(["Zoë"]), path)
    path.write_text(path.read_text().replace("\\u00eb", "ë"), encoding="cp1252")
    with pytest.raises(InvalidOperation, match="is no UTF-8"):
        load_items(path)
