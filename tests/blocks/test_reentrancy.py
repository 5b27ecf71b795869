"""In a callback or a function of a block, a call that would wait for its own thread is refused; others work."""

from concurrent.futures import Future

import pytest

from poolsave import InvalidOperation, concurrent_saves
from tests.support import operations

EXECUTORS = ["process", "thread", "serial"]


def open_block(executor, **options):
    return concurrent_saves(
        **{"executor": executor, "workers": 2, "transaction": None, "progress": False, "on_failure": "collect"}
        | options
    )


@pytest.fixture(params=EXECUTORS)
def in_callback(request, tmp_path):
    """Call something in a done-callback that runs in the thread of the block; gives what it returned or raised."""

    def call(does):
        came = []

        def called(_future):
            try:
                came.append(does(saves))
            except BaseException as error:
                came.append(error)

        file = tmp_path / "go"
        future = Future()
        with open_block(request.param) as saves:
            if request.param == "serial":  # which runs it at once, and calls back what was there before
                future.add_done_callback(called)
                saves.submit(future.set_result, 1)
            else:
                saves.submit(operations.waits_for_file, str(file)).add_done_callback(called)
                file.touch()
        (found,) = came
        return found

    return call


def test_map_in_a_callback_is_refused(in_callback):
    error = in_callback(lambda saves: saves.map(operations.doubles, [1]))
    assert type(error) is InvalidOperation
    assert "use submit()" in str(error)


@pytest.mark.parametrize("method", ["result", "exception"])
def test_a_future_that_is_not_done_is_not_waited_for_there(in_callback, method):
    error = in_callback(lambda saves: getattr(saves.submit(operations.doubles, 1), method)())
    assert type(error) is InvalidOperation


def test_submit_in_a_callback_works_beyond_the_window(in_callback):
    futures = in_callback(lambda saves: [saves.submit(operations.doubles, number) for number in range(600)])
    assert [future.result() for future in futures] == [2 * number for number in range(600)]


def test_another_pool_in_a_callback_works(in_callback):
    def maps(_saves):
        with open_block("thread") as others:
            return [*others.map(operations.doubles, [1]).values, others.submit(operations.doubles, 2).result()]

    assert in_callback(maps) == [2, 4]


@pytest.mark.parametrize("executor", ["thread", "serial"])
@pytest.mark.parametrize("wait", [lambda saves: saves.map(len, ["a"]), lambda saves: saves.submit(len, "a").result()])
def test_a_function_of_the_block_does_not_wait_for_it(executor, wait):
    with open_block(executor, workers=1) as saves:
        error = saves.submit(wait, saves).exception()
    assert type(error) is InvalidOperation


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_progress_callable_that_maps_ends_the_block(executor):
    def tell(_done, _total):
        saves.map(operations.doubles, [1])

    with (
        pytest.raises(InvalidOperation, match=r"saves\.map\(\)") as caught,
        open_block(executor, progress=tell) as saves,
    ):
        saves.submit(operations.doubles, 1)
    assert caught.value.report.succeeded == 1


def test_a_function_of_another_pool_may_wait_for_a_block():
    def maps(number):
        with open_block("thread") as saves:
            return saves.map(operations.doubles, [number]).values

    assert operations.doubles.using(executor="thread").map([1]).ok
    with open_block("thread") as outer:
        assert outer.map(maps, [1, 2]).values == [[2], [4]]
