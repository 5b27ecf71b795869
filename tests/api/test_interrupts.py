"""After Ctrl-C what runs is finished, the rest is skipped, and the report is complete."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from tests.conftest import wait_until

SCRIPT = """
    import sys
    import traceback

    import django

    django.setup()
    from tests.support import operations

    def endless():
        number = 0
        while True:
            yield sys.argv[2] if number == 0 else f"{sys.argv[2]}.other{number}"
            number += 1

    if __name__ == "__main__":
        operation = operations.waits_for_file.using(workers=1, chunksize=1, **eval(sys.argv[1]))
        try:
            operation.map(endless())
        except (KeyboardInterrupt, SystemExit) as error:
            report = error.report
            print(type(error).__name__, report.succeeded, report.failed, report.lost, report.total < 20)
            print(report.succeeded + report.failed + report.lost + report.skipped == report.total, report.stopped)
            printed = "".join(traceback.format_exception(error))
            print(printed.endswith(f"\\nKeyboardInterrupt\\n{report}\\n"))
"""
PROCESS = {"start_method": "fork"}


@pytest.fixture
def start(tmp_path):
    """Start the script in a group of its own; it waits for the flag."""
    running = []

    def start(options):
        script = tmp_path / "script.py"
        script.write_text(textwrap.dedent(SCRIPT))
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        process = subprocess.Popen(
            [sys.executable, str(script), repr(options), str(tmp_path / "go")],
            env=environment, start_new_session=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.append(process)
        wait_until((tmp_path / "go.begun").exists, seconds=30)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        process.stdout.close()


@pytest.mark.parametrize(
    "options", [PROCESS, {"start_method": "spawn"}, {"executor": "thread"}, {"executor": "serial"}]
)
@pytest.mark.parametrize(("signum", "name"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "SystemExit")])
def test_the_first_signal_finishes_what_runs(start, tmp_path, options, signum, name):
    process = start(options)
    if signum == signal.SIGINT:
        os.killpg(process.pid, signum)
    else:
        process.send_signal(signum)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)  # the running object goes on
    (tmp_path / "go").touch()
    output, _errors = process.communicate(timeout=30)
    assert output.splitlines() == [f"{name} 1 0 0 True", "True interrupted", str(name == "KeyboardInterrupt")]


@pytest.mark.parametrize("options", [PROCESS, {"executor": "serial"}])
def test_the_second_signal_ends_what_runs(start, options):
    process = start(options)
    os.killpg(process.pid, signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    os.killpg(process.pid, signal.SIGINT)
    output, _errors = process.communicate(timeout=30)
    lost = "0 1" if options == PROCESS else "1 0"  # serial: the exception ended the function
    assert output.splitlines() == [f"KeyboardInterrupt 0 {lost} True", "True interrupted", "True"]


BLOCK = """
    import sys

    import django

    django.setup()
    from poolsave import concurrent_saves
    from tests.support import operations

    if __name__ == "__main__":
        try:
            with concurrent_saves(workers=1, chunksize=1, window=20, transaction=None, start_method="fork") as saves:
                for number in range(5):
                    name = sys.argv[2] if number == 0 else f"{sys.argv[2]}.other{number}"
                    saves.submit(operations.waits_for_file, name)
        except KeyboardInterrupt as error:
            report = error.report
            print(report is saves.report, report.total, report.succeeded, report.stopped)
            print(error.__notes__ == [str(report)])
"""


def test_a_signal_while_a_block_is_being_left_finishes_what_runs(start, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "SCRIPT", BLOCK)
    process = start({})
    os.killpg(process.pid, signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    (tmp_path / "go").touch()
    output, _errors = process.communicate(timeout=30)
    assert output.splitlines() == ["True 5 1 interrupted", "True"]


NESTED = """
    import multiprocessing, sys
    from poolsave import pooled_operation

    @pooled_operation(executor="serial", transaction=None, progress=False)
    def waits(pipe):
        pipe.send("begun")
        pipe.recv()

    def work(pipe):
        waits.map([pipe])

    if __name__ == "__main__":
        here, there = multiprocessing.Pipe()
        worker = multiprocessing.Process(target=work, args=[there], daemon=True)
        worker.start()
        here.recv()
        worker.terminate()
        worker.join(20)
        print(worker.exitcode)
        worker.kill()
"""


def test_sigterm_of_another_pool_ends_a_worker_inside_a_run(tmp_path):
    """multiprocessing's pools, as Django's `test --parallel` has one, wait for ever if it does not end them."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(NESTED))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=40, check=True)
    assert done.stdout.strip() == str(-signal.SIGTERM)
