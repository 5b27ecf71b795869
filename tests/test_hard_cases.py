"""Each costs its own object one outcome, on every executor and start method."""

import os
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from poolsave import OperationsFailed, RemoteError, Status, concurrent_saves
from tests import hard_cases
from tests.conftest import START_METHODS, wait_until


@pytest.mark.parametrize("name", hard_cases.RAISED)
def test_an_exception_is_that_object_s_failure(pool, name):
    report = hard_cases.raises.using(**pool, chunksize=3).map(["before", name, "after"])
    assert report.values == ["before", "after"]
    (failure,) = report.failures
    assert (failure.item, failure.status) == (name, Status.FAILED)
    expected = type(hard_cases.RAISED[name]())
    if isinstance(failure.error, RemoteError):
        assert failure.error.class_path.endswith(expected.__name__)
    else:
        assert type(failure.error) is expected
    assert "raises" in failure.traceback
    with pytest.raises(OperationsFailed) as caught:
        report.raise_if_failed()
    assert len(caught.value.exceptions) == 1
    assert expected.__name__ in str(report)


@pytest.mark.parametrize("name", hard_cases.RAISED)
def test_a_future_raises_it(name):
    with concurrent_saves(workers=1, transaction=None, start_method="fork", on_failure="collect") as saves:
        error = saves.submit(hard_cases.raises, name).exception(30)
        assert error is not None
        assert bool(error)
    assert saves.report.failed == 1


@pytest.mark.parametrize("name", hard_cases.RETURNED)
def test_a_value_that_cannot_cross_is_that_object_s_failure(pool, name):
    report = hard_cases.returns.using(**pool, chunksize=3).map(["before", name, "after"])
    if pool["executor"] in ("serial", "thread") or "ThreadPool" in type(pool["executor"]).__name__:
        assert report.ok  # nothing has to cross
        return
    assert report.values == ["before", "after"]
    assert [failure.item for failure in report.failures] == [name]
    assert "return value" in report.failures[0].traceback


@pytest.mark.parametrize("item", [hard_cases.RaisesWhenPickled(), hard_cases.RaisesWhenRestored()], ids=["out", "in"])
def test_an_object_that_cannot_cross_is_its_own_failure(pool, item):
    report = hard_cases.gives_type.using(**pool, chunksize=3).map(["before", item, "after"])
    if pool["executor"] in ("serial", "thread") or "ThreadPool" in type(pool["executor"]).__name__:
        assert report.ok
        return
    assert report.values == ["str", "str"]
    (failure,) = report.failures
    assert failure.item is item
    assert type(failure.error) is ValueError


OPEN_AT_EXIT = """
    import sys
    from poolsave import concurrent_saves, pooled_operation

    def double(number):
        return 2 * number

    operation = pooled_operation(transaction=None, workers=2, progress=False)(double)

    if __name__ == "__main__":
        import __main__
        __main__.double = operation
        options = eval(sys.argv[1])
        stream = operation.using(**options).stream(range(1000))
        next(stream)
        saves = concurrent_saves(transaction=None, workers=2, **options).__enter__()
        saves.submit(pow, 2, 2).result()
        print("leaving", flush=True)
"""


@pytest.mark.parametrize("options", [*({"start_method": method} for method in START_METHODS), {"executor": "thread"}])
def test_an_interpreter_that_exits_with_pools_open_leaves_nothing(tmp_path, options):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(OPEN_AT_EXIT))
    clean = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(script), repr(options)], capture_output=True, text=True, timeout=40, check=False, env=clean
    )
    assert done.stdout.strip() == "leaving", done.stderr
    assert time.monotonic() - began < 30
    told = str(script)
    wait_until(lambda: not any(told in " ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])))
