"""The death of a worker costs the object that it was at, and nothing else."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from poolsave import Status, ValueLost, WorkerDied, concurrent_saves
from tests import operations
from tests.conftest import wait_until


@pytest.mark.parametrize("chunksize", [1, 4, 20])
def test_it_costs_the_object_that_it_was_at(start_method, chunksize):
    operation = operations.kills_itself.using(start_method=start_method, chunksize=chunksize, keep="all")
    report = operation.map(range(20))
    (lost,) = report.failures
    assert (lost.index, lost.status) == (3, Status.LOST)  # without a transaction nobody can know
    assert isinstance(lost.error, WorkerDied)
    assert (lost.error.signal, lost.error.exitcode, lost.error.item) == ("SIGKILL", -9, 3)
    assert "SIGKILL" in str(lost.error)
    assert report.succeeded == 19
    assert all(
        outcome.value == outcome.index or isinstance(outcome.error, ValueLost) for outcome in report if outcome.ok
    )


@pytest.mark.django_db(transaction=True, databases=["default", "postgres"])
def test_with_a_transaction_its_work_is_known_to_be_rolled_back(start_method, alias):
    from tests.models import Badge, Person

    operation = operations.saves_and_dies.using(start_method=start_method, databases=(alias,), chunksize=4)
    report = operation.bind(alias=alias).map([f"p{number}" for number in range(12)])
    (failed,) = report.failures
    assert (failed.item, failed.status) == ("p5", Status.FAILED)
    assert report.succeeded == 11
    assert Person.objects.using(alias).count() == Badge.objects.using(alias).count() == 11
    assert not Person.objects.using(alias).filter(name="p5").exists()


def test_in_the_block_its_future_says_so():
    with concurrent_saves(workers=2, transaction=None, start_method="fork", on_failure="collect") as saves:
        futures = [saves.submit(operations.kills_itself, number) for number in range(8)]
        assert isinstance(futures[3].exception(30), WorkerDied)
        assert [futures[number].result(30) for number in (0, 7)] == [0, 7]
    assert saves.report.lost == 1


def test_a_worker_that_is_killed_while_idle_is_replaced():
    with concurrent_saves(workers=1, transaction=None, start_method="fork") as saves:
        first, _name = saves.submit(operations.process_and_thread, 1).result(30)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not psutil.pid_exists(first))
        second, _name = saves.submit(operations.process_and_thread, 1).result(30)
    assert first != second


def test_workers_that_cannot_be_set_up_end_the_run_with_the_reason(tmp_path):
    """The module is there for the caller only."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import sys, types
        from poolsave import pooled_operation

        def here_only(number):
            return number

        module = sys.modules["here_only"] = types.ModuleType("here_only")
        here_only.__module__ = "here_only"
        module.here_only = pooled_operation(transaction=None, start_method="spawn", workers=2)(here_only)
        if __name__ == "__main__":
            del sys.modules["__mp_main__"] if "__mp_main__" in sys.modules else None
        """).replace('    del sys.modules["__mp_main__"] if "__mp_main__" in sys.modules else None\n', "")
        + textwrap.dedent("""
            try:
                module.here_only.map(range(10))
            except ModuleNotFoundError as error:
                print(error, error.report.succeeded, error.report.total == error.report.skipped)
        else:
            del sys.modules["here_only"]
        """)
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": ""},
    )  # fmt: skip
    assert done.stdout.strip() == "No module named 'here_only' 0 True", done.stderr


ORPHANS = """
    import sys

    import django

    django.setup()
    from tests import operations

    if __name__ == "__main__":
        operations.waits_for_file.using(start_method=sys.argv[1]).map([sys.argv[2]] * 2)
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_parent_that_is_killed_leaves_no_worker_behind(tmp_path, method):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(ORPHANS))
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    parent = subprocess.Popen([sys.executable, str(script), method, str(tmp_path / "go")], env=environment)
    try:
        wait_until((tmp_path / "go.begun").exists, seconds=30)
        family = psutil.Process(parent.pid).children(recursive=True)
    finally:
        parent.kill()
        parent.wait(30)
    assert family
    began = time.monotonic()
    _gone, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    assert time.monotonic() - began < 5


@pytest.mark.django_db(transaction=True, databases="__all__")
@pytest.mark.parametrize("mode", ["object", "chunk"])
@pytest.mark.parametrize("resolve", [False, True])
def test_a_worker_that_is_killed_in_the_middle_of_commit_is_not_called_failed(tmp_path, mode, resolve):
    """The server goes on committing, though nobody waits for its answer any more."""
    from django.db import connections

    from tests.models import Badge, Person

    with connections["postgres"].cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$;"
            "CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON tests_person DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW WHEN (NEW.name = 'slow') EXECUTE FUNCTION dawdle()"
        )
    try:
        size = 2 if mode == "chunk" else 1
        operation = operations.saves_and_tells_who.using(databases=("postgres",), transaction=mode, chunksize=size)
        killer = subprocess.Popen(
            [sys.executable, "-c", KILLER, str(tmp_path / "pid")], stdin=subprocess.DEVNULL
        )  # fmt: skip
        report = operation.using(start_method="fork", workers=1, resolve_lost=resolve).starmap(
            [("a", str(tmp_path / "other")), ("slow", str(tmp_path / "pid")), ("c", str(tmp_path / "other"))]
        )
        assert killer.wait(30) == 0
        wait_until(lambda: Person.objects.using("postgres").count() == 3)
    finally:
        with connections["postgres"].cursor() as cursor:
            cursor.execute("DROP FUNCTION dawdle CASCADE")
    assert report.failed == 0
    assert report.lost == (0 if resolve else 2 if mode == "chunk" else 1)
    assert report.succeeded == 3 - report.lost
    assert len(report.flawed) == (0 if not resolve else 2 if mode == "chunk" else 1)
    assert Badge.objects.using("postgres").count() == 3


KILLER = """
import os, signal, sys, time
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
time.sleep(0.4)  # by now it is in its COMMIT, which takes a second
os.kill(int(open(sys.argv[1]).read()), signal.SIGKILL)
"""
