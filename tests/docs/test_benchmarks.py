"""The benchmarks can be run, tell what they found as it is, and the README says what the last whole run has found."""

import copy
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks import asking, measuring, plotting, proxy, rendering

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def found_last():
    return json.loads((ROOT / "docs" / "benchmarks.json").read_text())


def cell(contender, *values, setting="", case="", grown=(), note=""):
    return {
        "contender": contender, "setting": setting, "case": case, "scale": 1,
        "values": list(values), "grown": list(grown), "note": note, "cpu": [[value / 2] * 3 for value in values],
    }  # fmt: skip


def part(*cells, **others):
    about = {"key": "users_postgres", "title": "Users", "about": "Some.", "unit": "s", "per": 0, "rounds": 3}
    more = {"baseline": "plain loop", "figure": "values", "by_case": False, "cells": list(cells)}
    return {**about, **more, **others}


def lines(text):
    return [[word.strip() for word in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def run(folder, *arguments):
    clean = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    return subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", "--quick", "--output", str(folder), *arguments],
        capture_output=True, text=True, timeout=110, check=False, env=clean, cwd=ROOT,
    )  # fmt: skip


@pytest.mark.programs
@pytest.mark.timeout(120)
def test_quick_run_measures_every_contender_and_writes_files(tmp_path):
    done = run(tmp_path, "--only", "users_sqlite,memory,recovery")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "benchmarks.json").read_text())
    assert [part["key"] for part in found["parts"]] == ["users_sqlite", "memory", "recovery"]
    cells = [cell for part in found["parts"] for cell in part["cells"]]
    assert {cell["note"] for cell in cells} <= {"", "not installed", "not available yet"}
    assert all(len(cell["values"]) == len(cell["grown"]) == 1 for cell in cells if not cell["note"])
    assert (tmp_path / "benchmarks.md").read_text() == rendering.page(found)
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / "benchmarks.png").read_bytes().startswith(b"\x89PNG")
    else:
        assert "no picture: matplotlib is not installed" in done.stdout
    assert "chunk: time with killed workers" in done.stdout


def test_a_part_that_is_not_there_is_named(tmp_path):
    done = run(tmp_path, "--only", "no_ops,nonsense")
    assert done.returncode == 1
    assert "there is no part 'nonsense', only no_ops, " in done.stderr


def test_the_readme_tells_what_the_figures_tell():
    before, _opening, rest = README.partition(rendering.MARKS[0] + "\n")
    block, closing, _after = rest.partition("\n" + rendering.MARKS[1])
    assert before
    assert closing
    assert block == rendering.block(found_last())


def test_the_page_tells_what_the_figures_tell():
    assert (ROOT / "docs" / "benchmarks.md").read_text() == rendering.page(found_last())
    assert (ROOT / "docs" / "benchmarks.png").exists()


def test_the_block_is_replaced_and_nothing_else():
    found = found_last()
    again = rendering.with_block(README, found)
    assert again == README
    other = copy.deepcopy(found)
    other["measured_on"]["date"] = "1999-12-31"
    changed = rendering.with_block(README, other)
    assert "1999-12-31" in changed
    assert rendering.with_block(changed, found) == README
    assert rendering.with_block("no block", found) == "no block"


@pytest.mark.parametrize(("rounds", "load", "warned"), [(5, "0.4", False), (4, "0.1", True), (5, "2.0", True)])
def test_figures_of_few_rounds_or_a_busy_machine_are_provisional(rounds, load, warned):
    found = found_last()
    found["measured_on"] |= {"rounds": rounds, "load before": load}
    assert ("Provisional" in rendering.block(found)) == ("Provisional" in rendering.page(found)) == warned


def test_a_table_tells_medians_spreads_and_ratios():
    told = part(cell("plain loop", 4.0, 2.0, 3.0), cell("poolsave process", 1.0, 0.5, 1.5))
    assert lines(rendering.table(told)) == [
        ["plain loop", "", "3", "2 .. 4", "1"],
        ["poolsave process", "", "1", "0.5 .. 1.5", "3"],
    ]


def test_cpu_time_is_told_per_object_of_each_side():
    told = part(cell("plain loop", 4.0, 2.0, 3.0), cell("pebble", note="not installed"), objects=1000)
    assert [line[-3:] for line in lines(rendering.table(told))] == [["1500"] * 3, ["", "", ""]]


def test_parts_that_were_measured_later_say_when():
    earlier = {"measured_on": {"date": "2026-01-01", "load before": "0.1"}, "parts": [part(key="memory"), part()]}
    found = {"measured_on": {"date": "2026-01-02", "load before": "9.0", "rounds": 3}, "parts": [part(title="New")]}
    merged = benchmarks.merged(earlier, found, ["users_postgres", "memory"])
    assert [(one["key"], one["title"]) for one in merged["parts"]] == [("users_postgres", "New"), ("memory", "Users")]
    assert "on 2026-01-02, beside a load of 9.0 of others." in rendering.section(merged["parts"][0])
    assert "2026" not in rendering.section(merged["parts"][1])


def test_write_behind_has_to_be_asked_for():
    cells = [cell("poolsave process", 2.0, setting="transaction=chunk")]
    cells += [cell("poolsave process", 1.0, setting="transaction=chunk, batch_writes=True")]
    assert asking.best(part(*cells), "poolsave process", "transaction=chunk") == 2.0
    assert asking.best(part(*cells), "poolsave process", "batch_writes=True") == 1.0


def test_six_bars_tell_seconds_for_as_many_users():
    cells = [cell("poolsave process", 3.0, 1.0, 2.0, setting="transaction=chunk, batch_writes=True")]
    told = part(*cells, objects=1000)
    assert plotting.seconds_of(told, "poolsave process", "batch_writes=True") == 20.0


def test_a_server_behind_the_proxy_answers_late_and_alike(tmp_path):
    """The same bytes, and not before they should be; by a server that reads to the end and closes."""
    folders = [tmp_path / "near", tmp_path / "far"]
    folders[0].mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folders[0] / proxy.SOCKET))
        server.listen()
        with proxy.far({"HOST": str(folders[0]), "PORT": ""}, folders[1], 0.02):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(folders[1] / proxy.SOCKET))
                began = time.perf_counter()
                client.sendall(b"x" * 300_000)
                client.shutdown(socket.SHUT_WR)
                session, _address = server.accept()
                with session:
                    received = b"".join(iter(lambda: session.recv(1 << 16), b""))
                    assert time.perf_counter() - began >= 0.02
                assert received == b"x" * 300_000
                assert client.recv(1) == b""
    assert not (folders[1] / proxy.SOCKET).exists()


def test_seconds_per_object_are_shown_where_that_is_the_unit():
    told = part(cell("plain loop", 0.002), unit="µs per object", per=1000)
    assert lines(rendering.table(told)) == [["plain loop", "", "2", "2 .. 2", "1"]]


def test_table_shows_the_best_chunk_size_and_all_other_settings():
    cells = [
        cell("mpire", 2.0, setting="chunksize=100"),
        cell("mpire", 1.0, setting="chunksize=1000"),
        cell("mpire", 3.0),
        cell("poolsave process", 2.0, setting="chunksize=100, transaction=object"),
        cell("poolsave process", 1.0, setting="transaction=chunk"),
    ]
    assert [(one["contender"], one["setting"]) for one in rendering.shown(part(*cells))] == [
        ("mpire", "chunksize=1000"),
        ("poolsave process", "chunksize=100, transaction=object"),
        ("poolsave process", "transaction=chunk"),
    ]


def test_missing_contender_is_shown_as_not_installed():
    told = part(cell("plain loop", 1.0), cell("pebble", note="not installed"))
    assert lines(rendering.table(told))[1] == ["pebble", "", "not installed", "", ""]
    assert "not installed" in rendering.by_case(told)


def test_cases_have_lines_and_contenders_columns():
    told = part(
        cell("plain loop", 9.0, case="10", grown=[1.0]), cell("other", 9.0, case="10", grown=[3.0]),
        cell("plain loop", 9.0, case="20", grown=[2.0]), cell("other", 9.0, case="20", grown=[5.0]),
        figure="grown", by_case=True,
    )  # fmt: skip
    assert lines(rendering.by_case(told)) == [
        ["10", "1, 1 .. 1", "3 (3), 3 .. 3"],
        ["20", "2, 2 .. 2", "5 (2.5), 5 .. 5"],
    ]


def test_unknown_ratios_are_left_open():
    told = {"parts": [part(cell("plain loop", 4.0), cell("poolsave process", 1.0, setting="transaction=chunk"))]}
    said = asking.ratios(told).splitlines()
    assert [line.split()[-1] for line in said] == ["4", "-", "-", "-", "-", "-"]


def dies(_cell):
    os._exit(3)


def raises(_cell):
    raise ValueError("first line\nsecond line")


def test_contender_that_fails_or_dies_is_reported():
    assert measuring.in_own_process(raises, None) == {"error": "failed: ValueError: first line"}
    assert measuring.in_own_process(dies, None) == {"error": "failed: its process died"}


def test_what_a_contender_leaves_behind_is_ended():
    ours, theirs = os.pipe()

    def leaves_a_child(_cell):
        if not os.fork():
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)  # should nobody end it
            signal.pause()
        return {}

    try:
        assert measuring.in_own_process(leaves_a_child, None) == {}
        os.close(theirs)
        assert os.read(ours, 1) == b""  # comes when nobody else has the other end any more
    finally:
        os.close(ours)
