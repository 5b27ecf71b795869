"""The death of a worker costs the object that it was at, and nothing else."""

import os
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest
from django.db import transaction

from poolsave import WorkerDied, concurrent_saves, pooled_operation
from tests.conftest import wait_until
from tests.support import operations


def test_worker_death_in_a_block_is_in_its_future():
    with concurrent_saves(workers=2, transaction=None, start_method="fork", on_failure="collect") as saves:
        futures = [saves.submit(operations.kills_itself, number) for number in range(8)]
        assert isinstance(futures[3].exception(30), WorkerDied)
        assert [futures[number].result(30) for number in (0, 7)] == [0, 7]
    assert saves.report.lost == 1


ORPHANS = """
    import sys

    import django

    django.setup()
    from tests.support import operations

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
    _gone, alive = psutil.wait_procs(family, timeout=5)
    assert not alive


@pytest.mark.django_db(transaction=True, databases="__all__")
@pytest.mark.parametrize(("mode", "resolve"), [("object", True), ("chunk", False), ("chunk", True)])
def test_worker_death_in_commit_is_not_called_failed(tmp_path, slow_commit, mode, resolve):
    """The server goes on with the COMMIT though no client waits for its answer."""
    from tests.models import Badge, Person

    size = 2 if mode == "chunk" else 1
    operation = operations.saves_and_tells_who.using(databases=("postgres",), transaction=mode, chunksize=size)
    with subprocess.Popen([sys.executable, "-c", KILLER, str(tmp_path / "pid")], stdout=subprocess.PIPE) as killer:
        try:
            assert killer.stdout.readline() == b"ready\n"
            report = operation.using(start_method="fork", workers=1, resolve_lost=resolve).starmap(
                [("a", str(tmp_path / "other")), ("slow", str(tmp_path / "pid")), ("c", str(tmp_path / "other"))]
            )
            assert killer.wait(30) == 0
        finally:
            killer.kill()
    wait_until(lambda: Person.objects.using("postgres").count() == 3)
    assert report.failed == 0
    assert report.lost == (0 if resolve else 2)
    assert report.succeeded == 3 - report.lost
    assert len(report.flawed) == (0 if not resolve else 2 if mode == "chunk" else 1)
    assert Badge.objects.using("postgres").count() == 3


@pytest.mark.django_db(transaction=True, databases="__all__")
@pytest.mark.parametrize("mode", ["object", "chunk"])
def test_a_callback_that_kills_its_worker_loses_nothing(alias, mode):
    from tests.models import Person

    def save(name):
        Person(name=name).save(using=alias)
        if name == "b":
            transaction.on_commit(lambda: os.kill(os.getpid(), signal.SIGKILL), using=alias)

    operation = pooled_operation(save, start_method="fork", workers=1, chunksize=4, progress=False)
    report = operation.using(transaction=mode, databases=(alias,)).map("abcd")
    assert report.succeeded == 4
    assert sorted(Person.objects.using(alias).values_list("name", flat=True)) == list("abcd")


KILLER = """
import os, signal, sys, time
from tests.support.postgres import IN_COMMIT, connect

cursor = connect().cursor()

def in_commit():
    cursor.execute(IN_COMMIT)
    return cursor.fetchone()[0]

assert not in_commit()
print("ready", flush=True)
while not in_commit():
    time.sleep(0.01)
os.kill(int(open(sys.argv[1]).read()), signal.SIGKILL)
"""
