"""Options: refused early, by name and value; explicit arguments over environment over settings over defaults."""

import concurrent.futures
import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolsave import InvalidOption, Options, Run, concurrent_saves, pooled_operation
from poolsave.options import worker_range
from poolsave.throttles import Hours, Pace
from tests.support import carriers, operations

BAD = [
    ("workers", 0), ("workers", True), ("workers", 2.5), ("chunksize", 0), ("chunksize", "huge"),
    ("executor", "rocket"),
    ("executor", concurrent.futures.ThreadPoolExecutor), ("executor", 4), ("start_method", "teleport"),
    ("transaction", "page"), ("databases", "default"), ("databases", (1,)), ("retries", -1),
    ("timeout", 0), ("timeout", float("inf")), ("timeout", "1"), ("resolve_lost", 1), ("max_failures", 0),
    ("max_failures", 1.5), ("max_failures", 0.0), ("on_failure", "ignore"), ("keep", "some"), ("window", 0),
    ("key", "customer"),
    ("throttle", 5), ("throttle", [Pace]), ("patience", 0), ("patience", True),
    ("progress", 5), ("carry", print), ("carry", [5]), ("before_fork", 5), ("after_fork", ["print"]),
]  # fmt: skip


def test_a_transaction_on_no_database_is_refused():
    with pytest.raises(InvalidOption, match=r"databases=\(\) .*transaction=None"):
        Options(databases=())
    assert Options(databases=(), transaction=None).databases == ()


@pytest.mark.parametrize(("name", "value"), BAD)
@pytest.mark.parametrize(
    "use", [pooled_operation, concurrent_saves, Options, operations.doubles.using, Options().using], ids=range(5)
)
def test_a_value_that_cannot_work_is_refused_by_name_and_value(use, name, value):
    with pytest.raises(InvalidOption) as caught:
        use(**{name: value})
    assert (caught.value.name, caught.value.value) == (name, value)
    assert str(caught.value).startswith(f"{name}={value!r} is not valid: ")
    assert isinstance(caught.value, ValueError)


def test_environment_overrides_the_defaults_of_the_settings(settings, monkeypatch):
    settings.POOLSAVE = {"workers": 7, "executor": "thread", "chunksize": 9}
    plain = pooled_operation(operations.plain_save)
    assert (plain.options.workers, plain.options.executor, plain.options.chunksize) == (7, "thread", 9)
    monkeypatch.setenv("POOLSAVE_WORKERS", "5")
    monkeypatch.setenv("POOLSAVE_EXECUTOR", "serial")
    assert (plain.options.workers, plain.options.executor, plain.options.chunksize) == (5, "serial", 9)
    assert plain.using(workers=2).options.workers == 2


@pytest.mark.parametrize("wrong", [None, ["workers"], "workers"])
def test_settings_that_are_no_dictionary_are_refused(settings, wrong):
    settings.POOLSAVE = wrong
    with pytest.raises(InvalidOption, match=r"settings\.POOLSAVE"):
        operations.doubles.map([1])


def test_settings_and_environment_are_checked_and_named(settings, monkeypatch):
    plain = pooled_operation(operations.plain_save)
    settings.POOLSAVE = {"wrokers": 7}
    with pytest.raises(InvalidOption, match=r"wrokers=7 \(from settings.POOLSAVE\)"):
        plain.map([])
    settings.POOLSAVE = {}
    monkeypatch.setenv("POOLSAVE_WORKERS", "many")
    with pytest.raises(InvalidOption, match=r"workers='many' \(from the environment\)"):
        plain.map([])


def test_the_block_raises_by_default_and_the_decorator_collects():
    assert Options().on_failure == "collect"
    with pytest.raises(ExceptionGroup), concurrent_saves(executor="serial", transaction=None) as saves:
        saves.submit(operations.fails_on_odd, 1)


def test_the_number_of_workers_is_chosen_by_default():
    assert Options().workers == "auto"
    assert worker_range("auto") == (len(os.sched_getaffinity(0)), max(32, len(os.sched_getaffinity(0))))


def test_on_failure_raise_raises_after_everything_has_ended():
    with pytest.raises(ExceptionGroup) as caught:
        operations.fails_on_odd.using(executor="serial", on_failure="raise").map(range(6))
    assert caught.value.report.values == [0, 2, 4]


VALUES = {
    "workers": st.integers(1, 64),
    "chunksize": st.just("auto") | st.integers(1, 10_000),
    "executor": st.sampled_from(["process", "thread", "serial"]),
    "start_method": st.sampled_from([None, "fork", "forkserver", "spawn"]),
    "transaction": st.sampled_from(["object", "chunk", None]),
    "batch_writes": st.booleans(),
    "timeout": st.none() | st.floats(0.01, 1000) | st.integers(1, 1000),
    "resolve_lost": st.sampled_from([True, False, None]),
    "databases": st.lists(st.sampled_from(["default", "second"]), min_size=1, unique=True).map(tuple),
    "retries": st.integers(0, 10),
    "max_failures": st.none() | st.integers(1, 100) | st.floats(0.01, 1.0),
    "on_failure": st.sampled_from(["collect", "raise"]),
    "keep": st.sampled_from(["values", "all", "failures"]),
    "window": st.none() | st.integers(1, 1000),
    "key": st.sampled_from([None, str]),
    "run": st.sampled_from([None, "articles", Run("articles", key=str, stale_after=5)]),
    "throttle": st.lists(st.sampled_from([Pace(500), Hours("22:00-06:00"), len])).map(tuple),
    "patience": st.none() | st.floats(min_value=0.001, max_value=1e6),
    "progress": st.none() | st.booleans(),
    "carry": st.sampled_from([(), (carriers.depth,)]),
    "before_fork": st.sampled_from([(), (operations.plain_save,)]),
    "after_fork": st.sampled_from([(), (operations.plain_save, operations.plain_save)]),
}


def is_accepted(chosen):
    """Whether the options go together."""
    return chosen.get("transaction") == "chunk" or not chosen.get("batch_writes")


def test_every_option_has_values_to_round_trip():
    assert set(VALUES) == Options.names()


@given(st.fixed_dictionaries({}, optional=VALUES).filter(is_accepted))
def test_options_round_trip(chosen):
    options = Options(**chosen)
    assert Options(**options.as_dict()) == options
    assert pickle.loads(pickle.dumps(options)) == options
    assert Options().using(**chosen) == options
    assert Options.resolve(chosen) == options
    assert all(getattr(options, name) == value for name, value in chosen.items())


def test_misspelt_option_is_refused_with_the_right_name():
    with pytest.raises(InvalidOption, match="did you mean chunksize="):
        operations.doubles.using(chunk_size=4)
