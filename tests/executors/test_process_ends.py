"""A worker counts as dead when its process has ended and not before, and what it needs is there before it begins."""

import errno
import os
import resource
import signal
import subprocess
import sys
from functools import partial
from multiprocessing import forkserver

import pytest

from poolsave import WorkerDied, pooled_operation
from poolsave.executors.processes import shared_marks, worker_handle
from tests.models import Person
from tests.support import operations

SIZE = 100_000


@pytest.fixture(params=["told by the kernel", "told by the sentinel"])
def told(request, monkeypatch):
    if request.param == "told by the sentinel":
        monkeypatch.setattr(worker_handle, "process_descriptor", lambda _pid: None)
    return request.param


@pytest.mark.django_db(transaction=True)
def test_end_of_the_fork_server_is_not_taken_for_its_workers(told, tmp_path):
    """Server: is killed. Worker: commits. Parent: must not say that the object was rolled back."""
    name = str(tmp_path / "p")
    operation = operations.sleeps_when_told.using(workers=1, chunksize=1, start_method="forkserver", keep="all")
    outcomes = operation.bind(seconds=0.5).stream([name, f"{name}2", f"{name}3"])
    ended = [next(outcomes)]
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    ended += outcomes
    forkserver._forkserver._stop()  # reaps it
    saved = set(Person.objects.values_list("name", flat=True))
    assert {outcome.item for outcome in ended if outcome.ok} == saved
    if told == "told by the kernel":
        assert len(saved) == 3


def test_function_that_closes_all_descriptors_hangs_nothing(told):
    def close(number):
        os.closerange(3, 256)
        return number

    report = pooled_operation(
        close, workers=1, chunksize=1, transaction=None, start_method="fork", progress=False, keep="all"
    ).map([1, 2])
    assert report.total == 2
    assert all(isinstance(outcome.error, Exception) for outcome in report)  # the workers could not answer


def test_worker_without_descriptor_is_ended_before_its_marks(monkeypatch, tmp_path):
    """Where the kernel tells nothing, its pipe ends with what it closes, and it would go on. It must not save."""
    monkeypatch.setattr(worker_handle, "process_descriptor", lambda _pid: None)

    def goes_on(path):
        os.closerange(3, 256)
        signal.pause()
        path.touch()

    report = pooled_operation(
        goes_on, workers=1, chunksize=1, transaction=None, start_method="fork", progress=False
    ).map([tmp_path / "saved"])
    assert [type(failure.error) for failure in report.failures] == [WorkerDied]
    assert not (tmp_path / "saved").exists()


def test_number_of_a_reaped_process_gets_no_signal(monkeypatch):
    """It may be another process's by then."""
    monkeypatch.setattr(worker_handle, "process_descriptor", lambda _pid: None)
    missed, kill = [], os.kill

    def recorded(pid, number):
        try:
            kill(pid, number)
        except ProcessLookupError:
            missed.append(number)
            raise

    def exits(_number):
        os._exit(7)

    monkeypatch.setattr(os, "kill", recorded)
    report = pooled_operation(exits, workers=1, transaction=None, start_method="fork", progress=False).map([1])
    (outcome,) = report.failures
    assert outcome.error.exitcode == 7
    assert signal.SIGKILL not in missed


def test_child_that_holds_the_pipes_does_not_hide_the_death(tmp_path):
    def leaves_a_child(number):
        pid = os.fork()
        if not pid:
            signal.pause()
        (tmp_path / "pid").write_text(str(pid))
        os._exit(7)

    report = pooled_operation(leaves_a_child, workers=1, transaction=None, start_method="fork", progress=False).map([1])
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    (outcome,) = report.failures
    assert isinstance(outcome.error, WorkerDied)
    assert outcome.error.exitcode == 7


@pytest.mark.parametrize("memory", [True, False])
def test_shared_memory_has_its_room_at_once(monkeypatch, memory):
    """Else a full /dev/shm would end the process that writes there, by SIGBUS."""
    if not memory:
        monkeypatch.delattr(os, "memfd_create")
    fd = shared_marks.reserved_file(SIZE)
    try:
        assert os.fstat(fd).st_blocks * 512 >= SIZE
    finally:
        os.close(fd)


def no_room(*_arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_no_room_at_the_start_is_an_error(monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(OSError, match="No space"):
        operations.doubles.using(start_method="fork").map(range(10))


@pytest.mark.parametrize("lack", ["room", "descriptors"])
def test_lack_in_mid_run_is_an_error_with_a_report(monkeypatch, lack):
    def lack_it():
        if lack == "room":
            monkeypatch.setattr(os, "posix_fallocate", no_room)
        else:
            highest = max(map(int, os.listdir("/proc/self/fd")))
            holes = [os.open(os.devnull, os.O_RDONLY) for _ in range(highest)]
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(holes) + 1, before[1]))
            return holes
        return []

    def kills_itself_at_5(number):
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    def numbers():
        yield from range(5)
        held.extend(lack_it())
        yield from range(5, 100)

    before, held = resource.getrlimit(resource.RLIMIT_NOFILE), []
    operation = pooled_operation(
        kills_itself_at_5, workers=1, chunksize=1, transaction=None, start_method="fork", progress=False
    )
    try:
        with pytest.raises(OSError, match=r"No space|Too many open files") as caught:
            operation.map(numbers())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in held:
            os.close(fd)
    report = caught.value.report
    assert report.values == [0, 1, 2, 3, 4]
    assert (report.lost, report.total) == (1, report.succeeded + report.failed + report.lost + report.skipped)


PRINTS = """
import pathlib, sys
from django.conf import settings

if not settings.configured:
    settings.configure()
from poolsave import pooled_operation

@pooled_operation(workers=1, transaction=None, start_method="forkserver", progress=False)
def prints(number):
    print("x" * 10_000, flush=True)
    return number

if __name__ == "__main__":
    try:
        said = str(prints.map(range(9)).values)
    except BaseException as error:
        said = repr(error)
    pathlib.Path(sys.argv[1]).write_text(said)
"""


def test_prints_of_a_program_without_stdout_reach_no_channel(tmp_path):
    """The fork server's pipes, and the marks of a worker, would have the numbers 0 to 2."""
    script, said = tmp_path / "prints.py", tmp_path / "said"
    script.write_text(PRINTS)
    subprocess.run([sys.executable, script, said], preexec_fn=partial(os.closerange, 0, 3), timeout=60, check=True)
    assert said.read_text() == str([*range(9)])
