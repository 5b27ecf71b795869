"""A pipeline gives what nested plain loops give, with any executors, chunk sizes and windows."""

from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poolsave import DROP, pooled_operation
from tests.support.selection import examples

numbers = st.lists(st.integers(-9, 9), max_size=30)
kinds = st.sampled_from(["adds", "drops", "fails", "expands", "expands to few"])
pools = st.sampled_from([{"executor": "serial"}, {"executor": "thread"}, {"start_method": "fork"}])
layouts = st.fixed_dictionaries({
    "workers": st.integers(1, 2),
    "chunksize": st.just("auto") | st.integers(1, 7),
    "window": st.none() | st.integers(1, 12),
})  # fmt: skip
stages = st.lists(st.tuples(kinds, pools, layouts), min_size=1, max_size=4)
"""Up to four stages, of which neighbours often share workers."""
some = settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def adds(number):
    return number + 3


def drops(number):
    return DROP if number % 3 == 0 else number


def fails(number):
    if number % 4 == 1:
        raise LookupError(number)
    return number


def expands(number):
    for step in range(3):
        yield number * 2 + step


def expands_to_few(number):
    return [number - step for step in range(number % 3)]


FUNCTIONS = {"adds": adds, "drops": drops, "fails": fails, "expands": expands, "expands to few": expands_to_few}


def pipeline_of(plan):
    """The pipeline, or the operation if there is one stage only."""
    made = None
    for kind, pool, layout in plan:
        decorate = pooled_operation(expand="expands" in kind, transaction=None, progress=False, **pool, **layout)
        made = decorate(FUNCTIONS[kind]) if made is None else made | decorate(FUNCTIONS[kind])
    return made


def nested_loops(objects, plan):
    """Every end, depth first: index, status, stage, value or the error's argument."""
    for index, item in enumerate(objects):
        yield from _ends(index, item, [kind for kind, _pool, _layout in plan])


def _ends(index, value, kinds):
    if not kinds:
        yield index, "succeeded", None, value
        return
    function = FUNCTIONS[kinds[0]]
    try:
        given = function(value)
        several = list(given) if "expands" in kinds[0] else [] if given is DROP else [given]
    except LookupError as error:
        yield index, "failed", function.__name__, error.args[0]
        return
    if not several:
        yield index, "dropped", function.__name__, None
    for one in several:
        yield from _ends(index, one, kinds[1:])


def seen(outcomes):
    return [(one.index, str(one.status), one.stage, one.error.args[0] if one.error else one.value) for one in outcomes]


two_or_more = stages.filter(lambda plan: len(plan) > 1)


@some
@given(numbers, two_or_more, st.sampled_from(["values", "all"]))
def test_map_gives_the_same_in_the_same_order(objects, plan, keep):
    report = pipeline_of(plan).using(keep=keep).map(iter(objects))
    expected = list(nested_loops(objects, plan))
    assert seen(report) == expected
    assert report.values == [value for _index, status, _stage, value in expected if status == "succeeded"]
    statuses = Counter(status for _index, status, _stage, _value in expected)
    assert (report.succeeded, report.failed, report.dropped) == tuple(
        statuses[name] for name in ("succeeded", "failed", "dropped")
    )
    assert report.total == len(expected) == report.succeeded + report.failed + report.dropped
    assert all(failure.item == objects[failure.index] for failure in report.failures)


@some
@given(numbers, two_or_more, st.booleans())
def test_stream_gives_the_same(objects, plan, ordered):
    found = seen(pipeline_of(plan).stream(objects, ordered=ordered))
    expected = list(nested_loops(objects, plan))
    assert (found == expected) if ordered else (Counter(found) == Counter(expected))


@some
@given(numbers, two_or_more)
def test_the_rows_of_the_stages_add_up(objects, plan):
    report = pipeline_of(plan).map(objects)
    fed = len(objects)
    for (kind, _pool, _layout), row in zip(plan, report.stages, strict=True):
        assert row.name == FUNCTIONS[kind].__name__
        assert row.fed == fed
        ended = row.dropped + row.failed + row.lost + row.skipped
        assert row.out >= 0 if "expands" in kind else row.out + ended == fed
        fed = row.out
    assert fed == report.succeeded


@some
@given(numbers, two_or_more, st.integers(1, 4))
def test_the_sums_add_up_when_it_stops_early(objects, plan, limit):
    pulled = []
    report = pipeline_of(plan).using(max_failures=limit).map(pulled.append(one) or one for one in objects)
    ends = report.succeeded + report.failed + report.lost + report.skipped + report.dropped
    assert ends == report.total == len(list(report))
    assert {outcome.index for outcome in report} == set(range(len(pulled)))
    assert report.stopped is not None or len(pulled) == len(objects)
    assert not (Counter(seen(report)) - Counter(nested_loops(objects, plan)) - Counter(skips(report)))


def skips(report):
    return [one for one in seen(report) if one[1] == "skipped"]
