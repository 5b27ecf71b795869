"""Every executor gives what a plain loop gives, with any objects, chunk sizes and windows."""

from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poolsave import Status, pooled_operation
from tests.support.selection import examples

items = st.lists(st.integers(-5, 5) | st.text(max_size=3) | st.none() | st.tuples(st.integers(0, 3)), max_size=40)
pools = st.sampled_from(
    [{"executor": "serial"}, {"executor": "thread"}, {"start_method": "fork"}]
)  # forkserver and spawn take a second each, and run the same code; the contract tests have them
layouts = st.fixed_dictionaries({
    "workers": st.integers(1, 3),
    "chunksize": st.just("auto") | st.integers(1, 12),
    "window": st.none() | st.integers(1, 30),
    "keep": st.sampled_from(["values", "all"]),
})  # fmt: skip
many = settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def fails_on(patterns):
    @pooled_operation(transaction=None, progress=False)
    def check(pair):
        number, item = pair
        if patterns[number % len(patterns)]:
            raise LookupError(number)
        return repr(item)

    return check


def expected(objects, patterns):
    """What a plain loop gives."""
    ends = []
    for number, item in objects:
        ends.append((number, None if patterns[number % len(patterns)] else repr(item)))
    return ends


def seen(outcomes):
    return [(outcome.index, outcome.value if outcome.ok else None) for outcome in outcomes]


failure_patterns = st.lists(st.booleans(), min_size=1, max_size=6)


@many
@given(items, failure_patterns, pools, layouts)
def test_map_equals_a_plain_loop(objects, patterns, pool, layout):
    numbered = list(enumerate(objects))
    report = fails_on(patterns).using(**pool, **layout).map(numbered)
    assert seen(report) == expected(numbered, patterns)
    assert report.values == [value for _index, value in expected(numbered, patterns) if value is not None]
    assert report.succeeded + report.failed + report.lost + report.skipped == report.total == len(objects)
    assert [(failure.item, failure.error.args) for failure in report.failures] == [
        (numbered[index], (index,)) for index, value in expected(numbered, patterns) if value is None
    ]


ranges = st.builds(range, st.integers(-20, 20), st.integers(-20, 60), st.integers(-3, 3).filter(bool))


@many
@given(ranges, failure_patterns, pools, layouts)
def test_a_range_is_as_good_as_the_list_of_its_numbers(numbers, patterns, pool, layout):
    @pooled_operation(transaction=None, progress=False)
    def check(number):
        if patterns[number % len(patterns)]:
            raise LookupError(number)
        return number

    report = check.using(**pool, **layout).map(numbers)
    ends = [(number, not patterns[number % len(patterns)]) for number in numbers]
    assert [outcome.index for outcome in report] == list(range(len(numbers)))
    assert report.values == [number for number, good in ends if good]
    assert [failure.item for failure in report.failures] == [number for number, good in ends if not good]
    assert report.total == len(numbers)
    if layout["keep"] == "all":
        assert [outcome.item for outcome in report] == list(numbers)


@pytest.mark.parametrize("pool", [{"executor": "serial"}, {"start_method": "fork"}], ids=str)
def test_a_range_may_have_more_numbers_than_can_be_counted(pool):
    absolute = pooled_operation(transaction=None, progress=False)(abs).using(**pool)
    with closing(absolute.stream(range(10**30), ordered=True)) as ends:
        assert [next(ends).value for _ in range(100)] == list(range(100))


@many
@given(items, failure_patterns, pools, layouts, st.booleans())
def test_stream_equals_a_plain_loop(objects, patterns, pool, layout, ordered):
    numbered = list(enumerate(objects))
    outcomes = fails_on(patterns).using(**pool, **layout).stream(iter(numbered), ordered=ordered)
    found = seen(outcomes)
    assert (found if ordered else sorted(found)) == expected(numbered, patterns)


@many
@given(items, failure_patterns, pools, layouts, st.integers(1, 10) | st.floats(0.1, 1.0))
def test_the_sums_of_a_report_add_up_when_it_stops_early(objects, patterns, pool, layout, limit):
    pulled = []
    numbered = enumerate(objects)
    report = (
        fails_on(patterns)
        .using(**pool, **layout, max_failures=limit)
        .map(pulled.append(pair) or pair for pair in numbered)
    )
    assert report.succeeded + report.failed + report.lost + report.skipped == report.total == len(pulled)
    assert [outcome.index for outcome in report] == list(range(report.total))
    assert all(outcome.status is not Status.LOST for outcome in report)
    assert report.stopped is not None or report.total == len(objects)


@many
@given(items, failure_patterns, pools, layouts, st.integers(0, 40))
def test_stream_left_early_has_read_no_further_than_its_window(objects, patterns, pool, layout, leave):
    pulled = []
    outcomes = (
        fails_on(patterns)
        .using(**pool, **{**layout, "window": 7})
        .stream(pulled.append(pair) or pair for pair in enumerate(objects))
    )
    taken = 0
    for _outcome in outcomes:
        taken += 1
        assert len(pulled) <= taken + 7
        if taken >= leave:
            break
    outcomes.close()
