"""`executor="auto"`: it starts in the caller's thread, goes over to processes when that pays, and comes back."""

import json
import multiprocessing
import os
import threading
from contextvars import ContextVar
from itertools import count, islice

import pytest
from django.db import connections, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poolsave import InvalidOption, OperationsFailed, Report, concurrent_saves, pooled_operation
from poolsave._auto import engine as _auto_engine
from poolsave._reports.trials import Trial
from poolsave._runs.preparation import ProcessPools, build_job, executor_for
from poolsave.testing import serial_saves
from tests.models import Badge, Person, Thing
from tests.support import carriers, hooks, operations
from tests.support.operations import pure
from tests.support.selection import examples

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")

AUTO = {"executor": "auto", "start_method": "fork"}


@pytest.fixture(autouse=True)
def _starts_of_earlier_tests(monkeypatch):
    """How long pools took to start before: on a busy machine so long that none would pay here."""
    monkeypatch.setattr(_auto_engine, "_start_seconds", {})


@pytest.fixture
def flapping(monkeypatch):
    """Go over at every opportunity, there and back."""
    monkeypatch.setattr(_auto_engine, "MAX_WATCH_SECONDS", 0.0)  # on SQLite one worker may keep the lock from the other
    monkeypatch.setattr(_auto_engine, "MIN_SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr(_auto_engine, "should_start_pool", lambda *_figures: (True, "for a test"))
    monkeypatch.setattr(_auto_engine, "should_keep_pool", lambda *_figures, **_more: (False, "for a test"))


@pytest.fixture
def quick_pools(monkeypatch):
    """Threads instead of processes, since they start and end at once; the engine does not know the difference."""

    def in_threads(pools):
        executor = executor_for(pools._spec.options, "thread")
        return executor, build_job(pools._spec, executor)

    monkeypatch.setattr(ProcessPools, "make", in_threads)


@pytest.fixture
def leaving(monkeypatch):
    """Go over to the pool at the first opportunity, and stay there."""
    monkeypatch.setattr(_auto_engine, "MIN_SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr(_auto_engine, "should_start_pool", lambda *_figures: (True, "for a test"))
    monkeypatch.setattr(_auto_engine, "should_keep_pool", lambda *_figures, **_more: (True, "for a test"))


def executors(report):
    return [trial.executor for trial in report.tried]


def here(report):
    """How many objects ran in this process, by what they returned."""
    return sum(value == os.getpid() for value in report.values)


# Where it runs


@pytest.mark.parametrize("objects", [[], [1], list(range(50))], ids=len)
def test_few_or_trivial_objects_stay_in_the_caller(objects):
    report = operations.doubles.using(**AUTO).map(objects)
    assert report.values == [2 * number for number in objects]
    assert executors(report) == ["serial"]
    assert report.chosen == "serial"


@pytest.mark.parametrize("sized", [True, False])
def test_slow_objects_go_over_to_the_pool(sized):
    objects = [0.1] * 30
    report = operations.naps.using(**AUTO).map(objects if sized else iter_of(objects))
    assert report.values == objects
    assert executors(report) == ["serial", "process"]
    assert report.chosen == "process"
    assert report.tried[0].objects < 15
    assert any(isinstance(outcome.worker, int) for outcome in report)
    assert sum(trial.objects for trial in report.tried) == 30


def iter_of(objects):
    yield from objects


def test_a_pool_that_turns_out_slower_is_given_up(tmp_path):
    slower = operations.slower_elsewhere.using(**AUTO).bind(home=os.getpid(), lock=str(tmp_path / "lock"))
    report = slower.map(range(200))
    assert report.succeeded == 200
    assert executors(report) == ["serial", "process", "serial"]
    assert "times as fast" in report.tried[1].verdict
    assert report.tried[1].objects == 200 - here(report)


def test_one_worker_is_never_tried():
    report = operations.naps.using(**AUTO).using(workers=1).map([0.05] * 20)
    assert executors(report) == ["serial"]
    assert "one worker" in report.tried[0].verdict


def test_auto_says_why_in_the_report_and_its_file(tmp_path):
    report = operations.naps.using(**AUTO).map([0.1] * 60)
    assert "auto: serial (" in str(report)
    assert "then process (" in str(report)
    assert report.tried[-1].verdict in str(report)
    report.to_json(tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["chosen"] == "process"
    assert [one["executor"] for one in written["tried"]] == ["serial", "process"]


def test_other_executors_say_nothing_of_trials(tmp_path):
    report = operations.doubles.using(executor="serial").map([1])
    assert (report.tried, report.chosen) == ((), None)
    assert "auto" not in str(report)
    report.to_json(tmp_path / "report.json")
    assert "tried" not in json.loads((tmp_path / "report.json").read_text())


def test_the_rate_of_a_trial_that_took_no_time_is_nothing():
    assert Trial(executor="serial", objects=0, seconds=0.0, verdict="").rate == 0
    assert Report().chosen is None


# Where no pool can be


def test_auto_stays_inside_a_transaction(leaving, alias):
    save = operations.save_person.using(**AUTO, databases=(alias,)).bind(alias=alias)
    with transaction.atomic(using=alias):
        report = save.map("abc")
        transaction.set_rollback(True, using=alias)
    assert report.ok
    assert executors(report) == ["serial"]
    assert f"inside a transaction on {alias!r}" in report.tried[0].verdict
    assert not Person.objects.using(alias).exists()


def test_unpicklable_function_stays_where_no_fork_is_possible(leaving):
    report = pure(lambda number: -number).using(executor="auto", start_method="forkserver").map(range(5))
    assert report.values == [0, -1, -2, -3, -4]
    assert executors(report) == ["serial"]
    assert "cannot be pickled" in report.tried[0].verdict


def test_objects_and_values_that_cannot_be_pickled_stay(leaving):
    locks = [threading.Lock() for _ in range(4)]
    for operation, objects in ((operations.echoes, locks), (pure(lambda _item: threading.Lock()), range(4))):
        report = operation.using(**AUTO).map(objects)
        assert report.succeeded == 4
        assert executors(report) == ["serial"]
        assert "cannot be pickled" in report.tried[0].verdict


def test_an_object_that_cannot_be_sent_brings_the_rest_back(leaving):
    lock = threading.Lock()
    objects = [*range(40), lock, *range(20)]
    report = operations.echoes.using(**AUTO, chunksize=1).map(objects)
    assert report.values == objects
    assert executors(report) == ["serial", "process", "serial"]
    assert "cannot be sent" in report.tried[-1].verdict


def test_auto_stays_with_a_database_in_memory(leaving, monkeypatch):
    monkeypatch.setattr(connections["second"], "is_in_memory_db", lambda: True)
    report = operations.doubles.using(**AUTO, databases=("second",)).map(range(4))
    assert executors(report) == ["serial"]
    assert "'second' is in memory" in report.tried[0].verdict


def test_auto_stays_in_a_daemonic_process(leaving):
    with multiprocessing.get_context("fork").Pool(1) as pool:
        ran = pool.apply(run_in_a_daemon)
    assert ran == (["serial"], 5)


def run_in_a_daemon():
    report = operations.doubles.using(**AUTO).map(range(5))
    assert "daemonic" in report.tried[0].verdict
    return executors(report), report.succeeded


def test_a_time_out_needs_processes_at_once():
    report = operations.process_and_thread.using(**AUTO, timeout=30).map(range(3))
    assert os.getpid() not in {pid for pid, _thread in report.values}
    assert executors(report) == ["process"]
    assert "timeout" in report.tried[0].verdict


def test_tests_that_want_all_inline_win(leaving):
    with serial_saves():
        report = operations.doubles.using(**AUTO).map(range(5))
    assert report.tried == ()


# A worker's death


def test_worker_death_keeps_what_is_left_out_of_the_caller(monkeypatch, flapping):
    home = os.getpid()

    @pure
    def dies_elsewhere(number):
        if number == 10 and os.getpid() != home:
            os._exit(3)
        return os.getpid()

    monkeypatch.setattr(_auto_engine, "should_keep_pool", lambda *_figures, **_more: (None, "not yet"))
    report = dies_elsewhere.using(**AUTO, chunksize=1).map(range(40))
    assert (report.succeeded + report.lost, report.lost) == (40, 1)
    assert executors(report) == ["serial", "process"]
    assert "a worker died" in report.tried[-1].verdict


# Everything else is as with one executor

items = st.lists(st.integers(-5, 5) | st.text(max_size=3) | st.none() | st.tuples(st.integers(0, 3)), max_size=30)
many = settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@many
@given(
    items,
    st.lists(st.booleans(), min_size=1, max_size=6),
    st.just("auto") | st.integers(1, 9),
    st.booleans(),
    st.none() | st.integers(2, 30),
)
def test_outcomes_are_those_of_a_serial_run(flapping, quick_pools, objects, failing, chunksize, ordered, window):
    @pooled_operation(transaction=None, progress=False, workers=2, chunksize=chunksize, window=window)
    def check(pair):
        if failing[pair[0] % len(failing)]:
            raise LookupError(pair[0])
        return repr(pair[1])

    def told(outcomes):
        return [(one.index, one.status, one.value, str(one.error), one.attempts) for one in outcomes]

    numbered = list(enumerate(objects))
    expected = told(check.using(executor="serial").map(numbered))
    report = check.using(**AUTO).map(numbered)
    assert told(report) == expected
    assert sum(trial.objects for trial in report.tried) == len(objects)
    streamed = told(check.using(**AUTO).stream(iter(numbered), ordered=ordered))
    assert (streamed if ordered else sorted(streamed)) == expected


@pytest.mark.parametrize("mode", ["object", "chunk"])
def test_switch_to_a_pool_and_back_loses_and_doubles_nothing(flapping, alias, mode):
    names = [f"p{number}" for number in range(60)]
    failing = names[::7]
    save = operations.save_person.using(**AUTO, databases=(alias,), transaction=mode, chunksize=3)
    report = save.bind(alias=alias, fail=failing).map(iter(names))
    assert executors(report)[:4] == ["serial", "process", "serial", "process"]
    assert [failure.item for failure in report.failures] == failing
    saved = [name for name in names if name not in failing]
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT name FROM tests_person ORDER BY id")
        assert sorted(name for (name,) in cursor.fetchall()) == sorted(saved)
    assert Badge.objects.using(alias).count() == len(saved)
    by_key = dict(Person.objects.using(alias).values_list("pk", "name"))
    assert [by_key[value] for value in report.values] == saved


def test_each_row_of_a_queryset_is_visited_once(flapping, alias):
    Thing.objects.using(alias).bulk_create([Thing() for _ in range(30)])
    visit = operations.visit.using(**AUTO, databases=(alias,), chunksize=4).bind(alias=alias)
    report = visit.map(Thing.objects.using(alias).all())
    assert report.ok
    assert {"serial", "process"} == set(executors(report))
    assert set(Thing.objects.using(alias).values_list("visits", flat=True)) == {1}


def test_a_stream_reads_no_further_than_its_window(flapping):
    pulled = []
    outcomes = operations.doubles.using(**AUTO, window=5, chunksize=2).stream(
        pulled.append(number) or number for number in count()
    )
    for taken, _outcome in enumerate(islice(outcomes, 40), 1):
        assert len(pulled) <= taken + 5
    outcomes.close()


def test_auto_stops_after_too_many_failures(flapping):
    report = operations.fails_on_odd.using(**AUTO, max_failures=5, chunksize=1).map(count())
    assert report.failed >= 5
    assert report.stopped
    assert report.succeeded + report.failed + report.skipped == report.total


def test_input_that_raises_does_so_after_what_was_begun(flapping):
    def breaks():
        yield from range(20)
        raise LookupError("input")

    with pytest.raises(LookupError, match="input") as caught:
        operations.doubles.using(**AUTO, chunksize=2).map(breaks())
    assert caught.value.report.values == [2 * number for number in range(20)]
    assert len(caught.value.report.tried) > 1


@pytest.mark.parametrize("at", [0, 8], ids=["in the caller", "in the pool"])
def test_ctrl_c_keeps_the_report(leaving, at):
    interrupts = operations.interrupts.using(**AUTO, chunksize=1, workers=2).bind(home=os.getpid(), at=at)
    with pytest.raises(KeyboardInterrupt) as caught:
        interrupts.map(count())
    report = caught.value.report
    assert report.stopped == "interrupted"
    assert report.succeeded + report.skipped == report.total >= at
    assert executors(report) == (["serial"] if at == 0 else ["serial", "process"])


def test_ctrl_c_while_the_pool_starts_keeps_the_report(leaving):
    with pytest.raises(KeyboardInterrupt) as caught:
        operations.doubles.using(**AUTO, chunksize=1, before_fork=interrupt_me).map(range(10))
    report = caught.value.report
    assert report.stopped == "interrupted"
    assert report.succeeded + report.skipped == report.total


def interrupt_me():
    import signal

    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_on_the_way_back_keeps_the_report(flapping, monkeypatch):
    def give_up(*_figures, **_more):
        interrupt_me()
        return False, "for a test"

    monkeypatch.setattr(_auto_engine, "should_keep_pool", give_up)
    with pytest.raises(KeyboardInterrupt) as caught:
        operations.doubles.using(**AUTO, chunksize=1).map(count())
    report = caught.value.report
    assert report.succeeded + report.skipped == report.total
    assert executors(report)[:2] == ["serial", "process"]


def test_hooks_are_called_only_when_a_pool_starts(leaving):
    hooks.take("before")
    quiet = operations.doubles.using(**AUTO, workers=1, before_fork=hooks.notes_before)
    assert quiet.map(range(3)).ok
    assert not hooks.take("before")
    assert quiet.using(workers=2).map(range(8)).chosen == "process"
    assert [pid for pid, _ in hooks.take("before")] == [os.getpid()]


def test_hook_that_raises_brings_the_report(leaving):
    def no():
        raise LookupError("hook")

    with pytest.raises(LookupError, match="hook") as caught:
        operations.doubles.using(**AUTO, chunksize=1, before_fork=no).map(range(5))
    report = caught.value.report
    assert report.succeeded >= 1
    assert report.succeeded + report.skipped == report.total


def test_context_goes_along_to_caller_and_pool(flapping):
    token = carriers.colour.set("ann")
    try:
        report = carriers.tells_colour.using(**AUTO, chunksize=1, carry=[carriers.colour]).map(range(12))
    finally:
        carriers.colour.reset(token)
    assert report.values == ["ann"] * 12
    assert "process" in executors(report)


def test_failures_are_raised_at_the_end(leaving):
    with pytest.raises(OperationsFailed) as caught:
        operations.fails_on_odd.using(**AUTO, chunksize=1, on_failure="raise").map(range(6))
    assert caught.value.report.failed == 3


# Blocks, settings and checks


def test_a_block_takes_processes_if_nothing_speaks_against_them():
    with concurrent_saves(executor="auto", workers=2, transaction=None) as saves:
        assert saves.submit(os.getpid).result() != os.getpid()
    assert saves.report.chosen == "process"
    assert "nothing speaks against" in saves.report.tried[0].verdict


def test_a_block_inside_a_transaction_stays_in_the_caller():
    with transaction.atomic(), concurrent_saves(executor="auto", workers=2) as saves:
        assert saves.submit(os.getpid).result() == os.getpid()
    assert saves.report.chosen == "serial"
    assert "inside a transaction" in saves.report.tried[0].verdict


def test_block_with_unpicklable_context_stays_in_the_caller():
    options = {"executor": "auto", "start_method": "forkserver", "transaction": None}
    with concurrent_saves(**options, workers=2, carry=[ContextVar("nowhere")]) as saves:
        assert saves.submit(os.getpid).result() == os.getpid()
    assert "carry" in saves.report.tried[0].verdict


def test_settings_and_the_environment_can_name_it(settings, monkeypatch):
    settings.POOLSAVE = {"executor": "auto"}
    assert operations.doubles.map([1]).chosen == "serial"
    settings.POOLSAVE = {}
    assert operations.doubles.map([1]).chosen is None
    monkeypatch.setenv("POOLSAVE_EXECUTOR", "auto")
    assert operations.doubles.map([1]).chosen == "serial"


def test_check_calls_no_error_what_only_keeps_it_in_the_caller():
    with transaction.atomic():
        found = operations.save_person.using(**AUTO).check(["a"])
        assert [one.id for one in found if "transaction" in one.msg] == ["poolsave.I002"]
        timed = operations.save_person.using(**AUTO, timeout=5).check(["a"])
        assert [one.id for one in timed if "transaction" in one.msg] == ["poolsave.E003"]
    assert [one.id for one in pure(lambda number: number).using(executor="auto", start_method="spawn").check()] == [
        "poolsave.I002"
    ]
    assert [one.id for one in operations.save_person.using(**AUTO, databases=("nowhere",)).check()] == ["poolsave.E001"]


def test_auto_refuses_what_no_executor_could_do():
    with pytest.raises(InvalidOption, match="nowhere"):
        operations.save_person.using(**AUTO, databases=("nowhere",)).map(["a"])
