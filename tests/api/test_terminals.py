"""What a terminal shows: a bar of its width with the failures in sight, which spoils no other line."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
    import sys
    from poolsave import pooled_operation

    @pooled_operation(executor=sys.argv[1], transaction=None, workers=2, chunksize=50)
    def fails_on_every_fourth_of_them(number):
        if number % 4 == 0:
            raise ValueError("no fourths")

    if __name__ == "__main__":
        fails_on_every_fourth_of_them.map((number for number in range(1000)), total=1000)
        print("the end")
"""


def on_terminal(command, columns, **environment):
    """Run a command in a terminal of that width, and give what it writes there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    variables = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**variables, "PYTHONPATH": str(ROOT), **environment}
    )
    os.close(theirs)
    written = b""
    try:
        while part := read(ours):
            written += part
        assert process.wait(30) == 0, written.decode()
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return written.decode()


def read(descriptor):
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux says so when the other side is closed
        return b""


def screen(written):
    """Give the lines that a terminal shows in the end: what follows a carriage return is written over the line."""
    lines = []
    for line in written.replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


@pytest.mark.parametrize("columns", [40, 120])
@pytest.mark.parametrize("executor", ["process", "thread"])
def test_failures_stay_in_sight_in_a_bar_of_any_width(tmp_path, columns, executor):
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    written = on_terminal([sys.executable, str(tmp_path / "script.py"), executor], columns)
    frames = [frame for frame in written.replace("\n", "\r").split("\r") if "%|" in frame or "failed=" in frame]
    assert all(len(frame) <= columns for frame in frames)
    assert any(frame.startswith("failed=250 fails_") for frame in frames)
    shown = screen(written)
    assert shown[-2:] == ["the end", ""]
    (bar,) = [line for line in shown if line.startswith("failed=")]
    assert bar.startswith("failed=250 ")
    assert "1000/1000" in bar


@pytest.mark.parametrize("columns", [20, 40, 120])
def test_failures_and_count_stay_in_sight_without_a_total(tmp_path, columns):
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT).replace(", total=1000", ""))
    (bar,) = [
        line
        for line in screen(on_terminal([sys.executable, str(tmp_path / "script.py"), "thread"], columns))
        if line.startswith("failed=")
    ]
    assert bar.startswith("failed=250")
    assert ": 1000" in bar
    assert ": :" not in bar


LOGGED = """
    import logging
    import time
    from poolsave import pooled_operation

    logging.basicConfig(level=logging.INFO, format="%(message)s")

    @pooled_operation(executor="serial", transaction=None, chunksize=50)
    def fails_once(number):
        time.sleep(0.001)
        if number == 400:
            raise ValueError("once")

    fails_once.map(range(500))
"""


@pytest.mark.parametrize("columns", [40, 120])
def test_lines_of_the_log_stand_beside_the_bar(tmp_path, columns):
    (tmp_path / "script.py").write_text(textwrap.dedent(LOGGED))
    shown = screen(on_terminal([sys.executable, str(tmp_path / "script.py")], columns, POOLSAVE_WORKERS="1"))
    started, cause, bar, ended, *rest = shown
    assert started == "fails_once started (executor serial, up to 1 workers)"
    assert cause == "fails_once ValueError, first at index 400 (400): once"
    assert bar.startswith("failed=1 fails_once: 100%|")
    assert ended.startswith("fails_once ended: 500 objects, 499 succeeded, 1 failed in ")
    assert rest == [""]


@pytest.mark.programs
@pytest.mark.parametrize("columns", [40, 120])
def test_bar_of_a_migration_leaves_djangos_line_whole(tmp_path, columns):
    command = [sys.executable, str(ROOT / "examples" / "project" / "manage.py"), "migrate", "catalogue"]
    environment = {"DJANGO_SETTINGS_MODULE": "settings", "PROJECT_DATABASE": str(tmp_path / "db.sqlite3")}
    environment["DJANGO_COLORS"] = "nocolor"
    shown = screen(on_terminal(command, columns, **environment))
    applied = [line for line in shown if line.startswith("  Applying ")]
    assert applied
    bars = [number for number, line in enumerate(shown) if "%|" in line or "obj/s" in line]
    assert bars
    for number in bars:
        assert not shown[number].startswith("  Applying")
        assert shown[number - 1] in applied
        assert shown[number - 1].endswith("...")
        assert shown[number + 1].strip() == "OK"
