"""A child that a function or the caller forks is no part of the run: it answers for nothing and ends nothing."""

import os
import subprocess
import sys
import textwrap

import pytest
from django.db import connections, transaction

from tests.models import Tag


def exits():
    sys.exit(3)


def fails():
    raise SystemError  # by a name that pytest's own output does not have


def goes_on():
    """Come out of the function, as the worker does."""


ENDS = [exits, fails, goes_on]


def noting(folder, end):
    """A function that forks at each third object; who comes to an object leaves a line in a file of its own name."""

    def work(number):
        with open(folder / str(number), "a") as file:
            file.write("here\n")
        if number % 3 == 1:
            _fork(end)
        return number

    return work


def _fork(end):
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the traceback of what it raises
        end()
        return
    _pid, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == {exits: 3, fails: 1, goes_on: 0}[end]


WAYS = [("serial", None), ("process", None), ("process", "object"), ("process", "chunk")]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(("executor", "mode"), WAYS)
def test_child_of_the_function_ends_where_it_ends(tmp_path, executor, mode, end):
    from poolsave import pooled_operation

    operation = pooled_operation(
        noting(tmp_path, end), workers=2, chunksize=4, executor=executor, start_method="fork", transaction=mode,
        progress=False,
    )  # fmt: skip
    report = operation.map(list(range(8)))
    assert [str(outcome.error) for outcome in report.failures] == []
    assert report.values == list(range(8))
    assert {int(file.name): file.read_text() for file in tmp_path.iterdir()} == dict.fromkeys(range(8), "here\n")


@pytest.mark.django_db(transaction=True, databases=["default", "postgres"])
@pytest.mark.parametrize("mode", ["object", "chunk"])
def test_child_of_a_callback_leaves_the_connection_alone(mode):
    from poolsave import pooled_operation

    def save(name):
        Tag.objects.using("postgres").create(name=name)
        transaction.on_commit(lambda: _fork(exits), using="postgres")

    report = pooled_operation(
        save, workers=1, chunksize=3, start_method="fork", transaction=mode, databases=("postgres",), progress=False
    ).map(["a", "b", "c"])
    assert (report.succeeded, [outcome.error for outcome in report]) == (3, [None] * 3)
    assert set(Tag.objects.using("postgres").values_list("name", flat=True)) == {"a", "b", "c"}
    connections.close_all()


CALLER = """
    import os, sys
    from django.conf import settings

    settings.configure()
    from poolsave import concurrent_saves, pooled_operation

    def children_of(here):
        # Each of these ends in another way what belongs to its parent.
        def leaves_the_loop():
            here.close()
        def goes_on():
            try:
                list(here)
            except RuntimeError:
                return
            os._exit(9)
        def exits():
            sys.exit(0)  # with exit handlers, multiprocessing's too
        return [leaves_the_loop, goes_on, exits]

    def in_child(act):
        pid = os.fork()
        if not pid:
            act()
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0, act

    def work(number):
        return number

    def numbers():
        yield from range(10)
        in_child(lambda: None)  # its SystemExit must get out of the run
        yield from range(10, 20)

    if __name__ == "__main__":
        options = {"workers": 2, "transaction": None, "progress": False}
        options |= {"executor": sys.argv[1], "start_method": "fork"}
        outcomes = pooled_operation(work, chunksize=1, window=6, **options).stream(range(60))
        ended = [next(outcomes)]
        for act in children_of(outcomes):
            in_child(act)
            ended += [next(outcomes) for _ in range(10)]
        # What is printed is written at once: a child that exits would write it a second time.
        print(len(ended + [*outcomes]), {str(one.status) for one in ended}, flush=True)
        print(sum(pooled_operation(work, chunksize=2, **options).map(numbers()).values), flush=True)
        with concurrent_saves(**options) as saves:
            futures = [saves.submit(work, number) for number in range(20)]
            pid = os.fork()
            if pid:
                assert os.waitpid(pid, 0)[1] == 0
            else:
                try:
                    saves.submit(work, 1)
                except RuntimeError:
                    pass
                else:
                    os._exit(9)
        if not pid:
            sys.exit(0)  # the block is left here, too
        print(saves.report.succeeded, sum(future.result() for future in futures))
"""


@pytest.mark.parametrize("executor", ["process", "thread"])
def test_child_of_the_caller_touches_nothing_of_the_run(tmp_path, executor):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(CALLER))
    done = subprocess.run(
        [sys.executable, "-W", "ignore:.*multi-threaded:DeprecationWarning", str(script), executor],
        capture_output=True, text=True, timeout=50, env={**os.environ, "PYTHONPATH": os.getcwd()}, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["60 {'succeeded'}", "190", "20 190"], done.stderr
