"""A block: each call runs in a worker and gives a future, and all of them are done when the block is left."""

import asyncio
import concurrent.futures
import contextlib
import gc
import os
import signal
import threading

import pytest

from poolsave import (
    InvalidOperation,
    InvalidOption,
    OperationsFailed,
    RemoteError,
    Status,
    ValueLost,
    WorkerDied,
    concurrent_saves,
)
from tests.conftest import wait_until
from tests.models import Badge, Employee, Person
from tests.support import operations


@pytest.fixture
def block(pool):
    return lambda **more: concurrent_saves(**{"workers": 2, "transaction": None, "progress": False, **pool, **more})


def test_futures_give_values_and_exceptions(block):
    with block(on_failure="collect") as saves:
        futures = [saves.submit(operations.fails_on_odd, number) for number in range(20)]
        assert [future.result(30) for future in futures[::2]] == list(range(0, 20, 2))
        assert isinstance(futures[1].exception(30), ValueError)
    assert saves.report.succeeded == saves.report.failed == 10
    assert [failure.item for failure in saves.report.failures] == list(range(1, 20, 2))


def test_a_clean_exit_raises_what_failed(block):
    with pytest.raises(OperationsFailed) as caught, block() as saves:
        saves.submit(operations.fails_on_odd, 1)
        saves.submit(operations.fails_on_odd, 2)
    assert caught.value.report is saves.report
    assert saves.report.total == 2


def test_plain_and_decorated_functions_take_any_arguments(block):
    with block() as saves:
        assert saves.submit(pow, 2, 5).result(30) == 32
        assert saves.submit(operations.adds, 1, 2, third=3).result(30) == 6
        assert saves.submit(operations.adds.bind(third=4), 1, 2).result(30) == 7


def test_the_standard_library_s_tools_work_inside(block):
    with block() as saves:
        futures = {saves.submit(operations.doubles, number) for number in range(10)}
        assert {future.result() for future in concurrent.futures.as_completed(futures, timeout=30)} == set(
            range(0, 20, 2)
        )
        done, pending = concurrent.futures.wait([saves.submit(operations.doubles, 1)], timeout=30)
        assert len(done) == 1
        assert not pending
        called = threading.Event()
        saves.submit(operations.doubles, 1).add_done_callback(lambda future: called.set())
        assert called.wait(30)

        async def awaits():
            return await asyncio.wait_for(asyncio.wrap_future(saves.submit(operations.doubles, 21)), 30)

        assert asyncio.run(awaits()) == 42


def test_waiting_with_a_time_out_does_not_wait_for_the_chunk(block, tmp_path, pool):
    if pool["executor"] == "serial":
        return
    flag = tmp_path / "go"
    with block() as saves:
        slow = saves.submit(operations.waits_for_file, str(flag))
        _done, pending = concurrent.futures.wait([slow], timeout=0.05)
        assert pending == {slow}
        assert saves.submit(operations.doubles, 4).result(30) == 8
        flag.touch()


def test_a_slow_source_keeps_no_worker_waiting(block):
    """Nothing more is submitted until the one before has come back."""
    with block(chunksize=50) as saves:
        for number in range(5):
            assert saves.submit(operations.doubles, number).result(30) == 2 * number


def test_if_the_body_raises_its_exception_leaves_unchanged(block, tmp_path):
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught, block(chunksize=1) as saves:
        for number in range(10):
            saves.submit(operations.doubles, number)
        raise error
    assert caught.value is error
    assert error.__cause__ is None
    report = saves.report
    assert report.total == report.succeeded + report.skipped == 10


def test_error_in_the_body_skips_what_has_not_started(tmp_path, pool):
    """A call that runs already is finished."""
    if pool["executor"] == "serial":
        return
    flag = tmp_path / "go"
    with pytest.raises(KeyError), concurrent_saves(**pool, workers=1, transaction=None, chunksize=1, window=9) as saves:
        running = saves.submit(operations.waits_for_file, str(flag))
        waiting = [saves.submit(operations.doubles, number) for number in range(5)]
        wait_until((tmp_path / "go.begun").exists)
        threading.Timer(0.2, flag.touch).start()
        raise KeyError
    assert running.result(0)
    assert saves.report.succeeded >= 1
    skipped = [future for future in waiting if future.cancelled() or future.exception(0) is not None]
    assert len(skipped) == saves.report.skipped >= 3
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join()


def test_a_pending_future_can_be_cancelled(tmp_path):
    flag = tmp_path / "go"
    with concurrent_saves(workers=1, transaction=None, chunksize=1, window=20) as saves:
        saves.submit(operations.waits_for_file, str(flag))
        pending = [saves.submit(operations.doubles, number) for number in range(10)]
        assert pending[-1].cancel()
        flag.touch()
    assert pending[-1].cancelled()
    assert saves.report.skipped == 1
    assert saves.report.succeeded == 10


def test_map_reuses_the_workers_and_reports_for_itself(block):
    with block(on_failure="collect") as saves:
        first = saves.map(operations.process_and_thread, range(8))
        second = saves.map(operations.fails_on_odd, range(8))
        third = saves.map(operations.process_and_thread, range(8))
    assert len({pid for pid, _thread in first.values + third.values}) <= 2
    assert [failure.index for failure in second.failures] == [1, 3, 5, 7]
    assert second.values == [0, 2, 4, 6]
    assert saves.report.total == 24


def test_map_finishes_what_was_read_when_its_input_raises(block):
    def breaks_off():
        yield from range(3)
        raise LookupError

    with block() as saves, pytest.raises(LookupError) as caught:
        saves.map(operations.doubles, breaks_off())
    assert caught.value.report.values == [0, 2, 4]


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_function_without_a_name_is_refused_in_the_caller(method):
    with concurrent_saves(workers=1, transaction=None, start_method=method) as saves:
        with pytest.raises(InvalidOperation, match="lambda"):
            saves.submit(lambda: 1)
    assert saves.report.total == 0


def test_unpicklable_arguments_fail_their_own_call_only():
    with concurrent_saves(workers=1, transaction=None, start_method="fork", on_failure="collect") as saves:
        bad = saves.submit(operations.doubles, threading.Lock())
        good = saves.submit(operations.doubles, 1)
        assert isinstance(bad.exception(30), TypeError)
        assert good.result(30) == 2
    assert saves.report.failed == 1


def test_a_block_that_was_left_takes_nothing_more(block):
    with block() as saves:
        pass
    with pytest.raises(RuntimeError, match="has been left"):
        saves.submit(operations.doubles, 1)


def test_a_block_can_be_entered_once_only(block):
    context = block()
    with context:
        pass
    with pytest.raises(RuntimeError, match="entered before"):
        context.__enter__()


def test_a_callback_may_submit_more(block):
    collected = []
    done = threading.Event()

    def more(future):
        collected.append(future.result())
        if len(collected) < 5:
            saves.submit(operations.doubles, future.result()).add_done_callback(more)
        else:
            done.set()

    with block(window=1) as saves:
        saves.submit(operations.doubles, 1).add_done_callback(more)
        assert done.wait(30)
    assert collected == [2, 4, 8, 16, 32]


def test_submit_blocks_while_the_window_is_full(tmp_path):
    flag = tmp_path / "go"
    with concurrent_saves(workers=1, transaction=None, window=3) as saves:
        futures = [saves.submit(operations.waits_for_file, str(flag)) for _ in range(3)]
        blocked = threading.Thread(target=lambda: futures.append(saves.submit(operations.doubles, 1)))
        blocked.start()
        blocked.join(0.2)
        assert blocked.is_alive()
        flag.touch()
        blocked.join(30)
    assert len(futures) == 4


def test_max_failures_skips_the_rest(block):
    with pytest.raises(OperationsFailed), block(max_failures=2, chunksize=1) as saves:
        for _ in range(30):
            saves.submit(operations.fails_on_odd, 1)
    report = saves.report
    assert report.total == 30
    assert report.failed + report.skipped == 30
    assert 2 <= report.failed < 30
    assert "max_failures" in report.stopped


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_save_writes_the_key_back(pool, alias):
    with concurrent_saves(**pool, workers=2, databases=(alias,), progress=False) as saves:
        people = [Person(name=f"p{number}") for number in range(10)]
        futures = [saves.save(person, using=alias) for person in people]
        employee = Employee(name="boss", salary=3)
        saves.save(employee, using=alias)
        assert futures[0].result(30) is people[0]
    assert sorted(person.pk for person in people) == sorted(
        Person.objects.using(alias).exclude(name="boss").values_list("pk", flat=True)
    )
    assert all(person._state.db == alias and not person._state.adding for person in people)
    assert employee.id == employee.person_ptr_id == employee.pk == Employee.objects.using(alias).get().pk
    assert Badge.objects.using(alias).count() == 11
    employee.salary = 4
    employee.save()
    assert Employee.objects.using(alias).get().salary == 4


@pytest.mark.django_db(transaction=True, databases=["default"])
def test_a_save_that_fails_leaves_the_instance_unsaved(pool):
    Person(name="taken").save()
    person = Person(name="taken")
    with concurrent_saves(**pool, workers=2, on_failure="collect") as saves:
        future = saves.save(person)
        assert type(future.exception(30)).__name__ == "IntegrityError"
    assert person.pk is None
    assert person._state.adding
    assert saves.report.failures[0].item is person
    assert saves.report.failures[0].status is Status.FAILED


def test_save_takes_model_instances_only(block):
    with block() as saves, pytest.raises(InvalidOperation, match="submit"):
        saves.save("a")


def test_exception_that_cannot_be_restored_is_a_remote_error(block):
    with block(on_failure="collect") as saves:
        error = saves.submit(operations.raises_needy, 4).exception(30)
    assert isinstance(error, operations.NeedyError | RemoteError)


def test_save_refuses_a_database_that_no_transaction_covers():
    with concurrent_saves(executor="serial") as saves, pytest.raises(InvalidOption, match="'second'"):
        saves.save(Person(name="a"), using="second")


def test_progress_that_raises_ends_the_block_with_all_outcomes(block):
    def tell(done, total):
        raise ZeroDivisionError

    futures = []
    with pytest.raises(ZeroDivisionError), block(progress=tell, chunksize=1) as saves:
        with contextlib.suppress(ZeroDivisionError):
            for number in range(20):
                futures.append(saves.submit(operations.doubles, number))
    report = saves.report
    assert report.total == len(futures) or report.total == len(futures) + 1
    assert report.succeeded + report.skipped == report.total
    assert all(future.done() for future in futures)


def test_callback_that_exits_ends_the_block_with_all_outcomes(block, pool, tmp_path):
    if pool["executor"] == "serial":  # the future is done by then, so that the exit is the body's own
        return

    def leave(_future):
        raise SystemExit(7)

    flag = tmp_path / "go"
    with pytest.raises(SystemExit), block(chunksize=1) as saves:
        futures = [saves.submit(operations.waits_for_file, str(flag))]
        futures[0].add_done_callback(leave)
        flag.touch()
        with contextlib.suppress(SystemExit):
            for number in range(20):
                futures.append(saves.submit(operations.doubles, number))
    assert saves.report.succeeded + saves.report.skipped == saves.report.total
    assert all(future.done() for future in futures)


@pytest.mark.parametrize("options", [{"executor": "serial"}, {"executor": "thread", "workers": 2}])
def test_a_running_object_may_submit_more(options):
    with concurrent_saves(**options, transaction=None, window=2) as saves:

        def submits(depth):
            if depth:
                saves.submit(submits, depth - 1)
            return depth

        for _ in range(3):
            saves.submit(submits, 30)
    assert saves.report.succeeded == 3 * 31


def test_worker_death_frees_its_places_in_a_full_window():
    with concurrent_saves(workers=1, window=1, transaction=None, start_method="fork") as saves:
        for _ in range(2):
            pid, _name = saves.submit(operations.process_and_thread, 1).result(30)
            os.kill(pid, signal.SIGKILL)
        assert saves.submit(operations.doubles, 1).result(30) == 2


lock = threading.Lock()


def takes_the_lock(number):
    with lock:
        return number


def test_a_replacement_inherits_no_lock_that_the_body_holds():
    with concurrent_saves(workers=1, transaction=None, start_method="fork", on_failure="collect") as saves:
        with lock:
            assert isinstance(saves.submit(operations.kills_itself, 3).exception(30), WorkerDied)
            assert saves.submit(operations.doubles, 2).result(30) == 4
        assert saves.submit(takes_the_lock, 5).result(30) == 5


def test_a_death_names_what_was_submitted():
    with concurrent_saves(workers=1, transaction=None, start_method="fork", on_failure="collect") as saves:
        error = saves.submit(operations.kills_itself, 3).exception(30)
    assert error.item == 3
    assert "while it ran 3" in str(error)


def test_callables_are_not_kept_for_ever():
    import weakref

    class Target:
        def __call__(self):
            return 1

        def __reduce__(self):
            return pow, (2, 3)

    with concurrent_saves(workers=1, transaction=None, start_method="fork", on_failure="collect") as saves:
        target = Target()
        gone = weakref.ref(target)
        saves.submit(target).exception(30)
        del target
        wait_until(lambda: gc.collect() >= 0 and gone() is None)  # the thread behind the block may still be at it


@pytest.mark.django_db(transaction=True, databases=["default"])
def test_a_model_that_refuses_its_key_is_saved_all_the_same():
    class Stubborn(Person):
        class Meta:
            proxy = True
            app_label = "tests"

        def __setattr__(self, name, value):
            if name == "id" and value is not None and threading.current_thread().name == "poolsave-driver":
                raise AttributeError(name)
            super().__setattr__(name, value)

    with concurrent_saves(executor="thread", workers=1) as saves:
        future = saves.save(Stubborn(name="a"))
        assert isinstance(future.exception(30), ValueLost)
    assert Person.objects.count() == 1
    assert saves.report.succeeded == 1
    assert len(saves.report.flawed) == 1
