"""A report is written to a file completely, as valid JSON or CSV, whatever the values are, or it is not written."""

import csv
import datetime as dt
import decimal
import enum
import json
import math
import os
import stat
import sys
import threading

import pytest

from poolsave import pooled_operation


class FormulaNumber(int):
    def __str__(self):
        return "=1+1"

    __repr__ = __str__


class FormulaFloat(float):
    __str__ = __repr__ = FormulaNumber.__str__


class FormulaText(str):
    __slots__ = ()

    def startswith(self, *_prefixes):
        return False


class Untellable:
    def __repr__(self):
        raise ValueError("no repr")


class ExitsInRepr:
    def __repr__(self):
        raise SystemExit(3)


class TellsFormula:
    def __repr__(self):
        return "@SUM(A1)"


class Colour(enum.IntEnum):
    RED = 1


class NoItems(dict):
    def items(self):
        raise ValueError("no items")


circular = [1]
circular.append(circular)
deep = []
for _ in range(100_000):
    deep = [deep]

TELLS = {
    "surrogate": ("a\udcff", "a\\udcff"),
    "untellable": (Untellable(), "<Untellable whose repr raised ValueError>"),
    "exits": (ExitsInRepr(), "<ExitsInRepr whose repr raised SystemExit>"),
    "huge": (16**5000, hex(16**5000)),
    "negative huge": (-(16**5000), hex(-(16**5000))),
    "nan": (math.nan, "nan"),
    "infinite": (-math.inf, "-inf"),
    "formula number": (FormulaNumber(7), 7),
    "formula float": (FormulaFloat(0.5), 0.5),
    "formula text": (FormulaText("=1+1"), "=1+1"),
    "formula repr": (TellsFormula(), "@SUM(A1)"),
    "full-width formula": ("\uff1d1+1", "\uff1d1+1"),
    "enum": (Colour.RED, 1),
    "truth": (True, True),
    "bytes": (b"\xff", "b'\\xff'"),
    "set": ({1}, "{1}"),
    "date": (dt.date(2026, 1, 2), "2026-01-02"),
    "decimal": (decimal.Decimal("1.50"), "1.50"),
    "circular": (circular, [1, "[1, [...]]"]),
    "keys": (
        {1: "a", "1": "b", (1, 2): "c", None: "d", math.nan: "e"},
        {"1": "a", "1'": "b", "(1, 2)": "c", "null": "d", "nan": "e"},
    ),
    "odd mapping": (NoItems(a=math.nan), {"a": "nan"}),
    "pair": (("a", [math.inf]), ["a", ["inf"]]),
}


@pooled_operation(executor="serial", transaction=None, progress=False, keep="all")
def gives(name):
    if name == "deep":
        return deep
    return TELLS[name][0]


@pytest.fixture(scope="module")
def report():
    return gives.map([*TELLS])


def refuse_constant(name):
    raise AssertionError(f"{name} is no JSON")


def test_json_is_strict_and_tells_every_value(report, tmp_path):
    report.to_json(tmp_path / "report.json")
    told = json.loads((tmp_path / "report.json").read_bytes(), parse_constant=refuse_constant)["outcomes"]
    assert {row["item"]: row["value"] for row in told} == {name: expected for name, (_given, expected) in TELLS.items()}


def test_a_value_of_any_depth_can_be_written(tmp_path):
    gives.map(["deep"]).to_json(tmp_path / "report.json")
    ((value),) = [row["value"] for row in json.loads((tmp_path / "report.json").read_bytes())["outcomes"]]
    assert value[0][0][0]
    gives.map(["deep"]).to_csv(tmp_path / "report.csv")


def test_no_cell_of_csv_is_a_formula(report, tmp_path):
    report.to_csv(tmp_path / "report.csv")
    csv.field_size_limit(10**6)
    with open(tmp_path / "report.csv", newline="", encoding="utf-8") as file:
        cells = {row["item"]: row["value"] for row in csv.DictReader(file)}
    assert cells.keys() == TELLS.keys()
    for name in ("formula text", "formula repr", "full-width formula", "infinite", "negative huge"):
        assert cells[name] == f"'{TELLS[name][1]}"
    assert (cells["formula number"], cells["formula float"], cells["enum"]) == ("7", "0.5", "1")
    assert not any(cell.startswith(("=", "+", "@")) for cell in cells.values())


@pytest.mark.parametrize("write", ["to_csv", "to_json"])
def test_a_new_file_is_private_and_an_old_one_keeps_its_mode(report, tmp_path, write):
    new, old, link = tmp_path / "new", tmp_path / "old", tmp_path / "link"
    old.write_text("before")
    old.chmod(0o640)
    link.symlink_to("old")
    getattr(report, write)(new)
    getattr(report, write)(link)
    assert stat.S_IMODE(new.stat().st_mode) == 0o600
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    assert link.is_symlink()
    assert old.read_bytes().count(b"\n") == new.read_bytes().count(b"\n")
    assert {path.name for path in tmp_path.iterdir()} == {"new", "old", "link"}


def test_an_old_file_stays_if_the_new_one_breaks_off(report, tmp_path, monkeypatch):
    path = tmp_path / "report.csv"
    path.write_text("before")
    monkeypatch.setattr(type(report), "__iter__", lambda _report: iter([None]))
    with pytest.raises(AttributeError):
        report.to_csv(path)
    assert path.read_text() == "before"
    assert [*tmp_path.iterdir()] == [path]


def test_a_pipe_is_written_to(report, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    report.to_json(tmp_path / "pipe")
    reader.join()
    assert len(json.loads(read[0])["outcomes"]) == len(TELLS)


def test_report_is_written_into_an_open_file_in_turn(tmp_path):
    with open(tmp_path / "redirected", "w") as file:
        print("before", file=file, flush=True)
        gives.map(["truth"]).to_csv(f"/dev/fd/{file.fileno()}")
        print("after", file=file)
    lines = (tmp_path / "redirected").read_text().splitlines()
    assert (lines[0], lines[1].partition(",")[0], lines[-1]) == ("before", "index", "after")


def test_an_impossible_path_is_named(report, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"report\.csv"):
        report.to_csv(tmp_path / "nowhere" / "report.csv")
    with pytest.raises(IsADirectoryError):
        report.to_csv(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        report.to_csv(tmp_path / "loop")


def test_a_report_prints_where_half_a_pair_cannot():
    report = gives.using(keep="values").map(["\udcff"])
    print(report, file=sys.stdout)
    str(report).encode("utf-8")
    assert r"\udcff" in str(report)
