"""What was found, as Markdown: pure functions of the raw figures."""

from statistics import median

MARKS = ("<!-- benchmarks -->", "<!-- end of benchmarks -->")
"""Between these two lines, the README has what `block` gives."""
OURS = "poolsave "


def shown(part):
    """Of each contender in each case the cell with the best median, which stands for its best chunk size."""
    best = {}
    for cell in part["cells"]:
        place = (cell["contender"], cell["case"], *_asked_about(cell))
        if place not in best or middle(part, cell) < middle(part, best[place]):
            best[place] = cell
    return list(best.values())


def _asked_about(cell):
    """Chunk sizes and joblib's ways to start processes are chosen among; the other settings are what is compared."""
    return tuple(word for word in cell["setting"].split(", ") if word and not word.startswith(("chunksize", "backend")))


def values(part, cell):
    """In the unit of the part."""
    factor = 1e6 / part["per"] if part["per"] else 1
    return [value * factor for value in cell[part["figure"]]]


def middle(part, cell):
    return median(values(part, cell)) if cell["values"] else float("inf")


def baseline(part, case=""):
    """The median of what the others are compared with."""
    return next(
        (
            middle(part, cell)
            for cell in part["cells"]
            if (cell["contender"], cell["case"]) == (part["baseline"], case) and cell["values"]
        ),
        None,
    )


def page(found):
    """The whole of docs/benchmarks.md."""
    facts = "\n".join(f"- {name}: {value}" for name, value in found["measured_on"].items())
    sections = "\n\n".join(map(section, found["parts"]))
    about = f"{caveat(found['measured_on'])}{ABOUT}"
    return f"# Benchmarks\n\n{about}\n\n{facts}\n\n![The same as a picture](benchmarks.png)\n\n{sections}\n"


QUIET = 0.5
"""The most load before a run whose figures are worth telling without a warning."""


def caveat(measured):
    """A sentence, if these figures are none to be relied on; else nothing."""
    if measured["rounds"] >= 5 and float(measured["load before"]) <= QUIET:
        return ""
    rounds = "1 round" if measured["rounds"] == 1 else f"{measured['rounds']} rounds"
    return f"**Provisional: {rounds}, on a machine with a load of {measured['load before']} from others.** "


ABOUT = """\
`python -m tests.benchmarks` has written this page, its picture and the raw figures in `benchmarks.json`. Contenders
alternate: each is measured once per round, in a forked process of its own, on emptied tables and with new connections.
What it imports is loaded before; its pool's start and end are in the clock, and so is closing the connections before a
fork, without which none of them works. Every run is checked against the database afterwards.

All have as many workers as there are CPUs unless something else is said; the article has four, as it says. Where chunk
sizes matter most, in the first part, each was tried with chunks of 100, of 1000 and by its own default, and the best is
told; for saves, which take a thousand times longer than to be sent, the others have chunks of 100 (of 10 where an
object takes 10 ms), and poolsave its automatic ones. joblib is told with the better of its `loky` and
`multiprocessing` backends in the first part, and has `multiprocessing` elsewhere, since loky's fresh processes have
to import Django. Only poolsave and the plain loop know afterwards which object failed and why; only poolsave with a
transaction, and the loop with `atomic()`, leave nothing behind of an object that fails half-way. The hand-written
best commits chunks of 100 as a whole, so that one failure undoes a hundred objects. `bulk_create` calls no `save()`
and sends no signals; it is the limit, and not a contender."""


def section(part):
    rounds = f"{part['rounds']} rounds" if part["rounds"] != 1 else "1 round"
    if "measured_on" in part:
        rounds += f", on {part['measured_on']['date']}, beside a load of {part['measured_on']['load before']} of others"
    figures = by_case(part) if part["by_case"] else table(part)
    return f"## {part['title']}\n\n{part['about']} Medians of {rounds}.\n\n{figures}"


def table(part):
    base = baseline(part)
    head = ["contender", "settings", f"{part['unit']}", "least .. most", f"times as fast as {part['baseline']}"]
    rows = [[cell["contender"], cell["setting"], *_numbers(part, cell, base)] for cell in shown(part)]
    if part.get("objects"):
        head += [f"CPU of {whose}, µs per object" for whose in ("caller", "workers", "server")]
        rows = [row + _cpu(part, cell) for row, cell in zip(rows, shown(part), strict=True)]
    return _markdown(head, rows, left=2)


def _cpu(part, cell):
    """The medians of caller, workers and server."""
    if not cell["values"]:
        return ["", "", ""]
    return [f"{1e6 * median(times) / part['objects']:.0f}" for times in zip(*cell["cpu"], strict=True)]


def _numbers(part, cell, base):
    if not cell["values"]:
        return [cell["note"], "", ""]
    ratio = base / middle(part, cell) if base else None
    return [number(middle(part, cell)), _spread(part, cell), number(ratio)]


def _spread(part, cell):
    return f"{number(min(values(part, cell)))} .. {number(max(values(part, cell)))}"


def by_case(part):
    """A line per case and a column per contender; ratios are those to the baseline in the same case."""
    cells = {(cell["case"], cell["contender"]): cell for cell in shown(part)}
    cases, names = (list(dict.fromkeys(key[place] for key in cells)) for place in (0, 1))
    rows = [[case, *(_cell(part, cells.get((case, name)), baseline(part, case)) for name in names)] for case in cases]
    return _markdown([f"{part['unit']} (times as much as {part['baseline']})", *names], rows, left=1)


def _cell(part, cell, base):
    if cell is None or not cell["values"]:
        return cell["note"] if cell else ""
    ratio = f" ({number(middle(part, cell) / base)})" if base and cell["contender"] != part["baseline"] else ""
    return f"{number(middle(part, cell))}{ratio}, {_spread(part, cell)}"


def _markdown(head, rows, *, left):
    line = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, line, *rows])


def number(value):
    """Three digits that count, without an exponent."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.4f}"


JOBS = {
    "users_postgres": "a user, a profile by a receiver, a group; PostgreSQL",
    "users_sqlite_default": "the same on SQLite, as Django opens it (600)",
    "users_sqlite": "the same on SQLite, with a write-ahead log",
    "hashing": "10 ms of hashing before each, PostgreSQL",
    "waiting": "5 ms of waiting before each, 16 workers, PostgreSQL",
    "waiting_one_row": "5 ms of waiting before a single row each, 16 workers, PostgreSQL",
    "table": "every row of a table, PostgreSQL",
}


def block(found):
    """What the README tells: a line per job."""
    measured = found["measured_on"]
    where = f"{measured['CPUs']}, Python {measured['Python']}, Django {measured['Django']}, {measured['date']}"
    parts = {part["key"]: part for part in found["parts"]}
    rows = [[job, *_line(parts[key])] for key, job in JOBS.items() if key in parts]
    others = ["loop", "4 processes, hand-written", "ProcessPoolExecutor"]
    head = ["seconds (times as fast as the loop)", *others, "poolsave", "with"]
    rounds = f"{measured['rounds']} rounds" if measured["rounds"] != 1 else "1 round"
    picture = "users" if {"users_postgres", "users_far"} <= parts.keys() else "benchmarks"
    return (
        f"![Seconds of poolsave and of others](docs/{picture}.png)\n\n{_markdown(head, rows, left=1)}\n\n"
        f"{caveat(measured)}Medians of {rounds}, on {where}.\n"
        "[Benchmarks](docs/benchmarks.md) has all contenders and how they were measured, and\n"
        "`python -m pip install -e '.[test,bench]' && python -m tests.benchmarks` measures them on your machine."
    )


def _line(part):
    cells = {cell["contender"]: cell for cell in shown(part) if not cell["contender"].startswith(OURS)}
    others = [cells.get(name) for name in ("plain loop", "article", "ProcessPoolExecutor.map")]
    ours = best_of_ours(part)
    best = [_brief(part, ours), f"`{ours['contender'].removeprefix(OURS)}`, {_code(ours)}"] if ours else ["", ""]
    return [*(_brief(part, cell) for cell in others), *best]


def _code(cell):
    told = [word for word in cell["setting"].split(", ") if word.startswith(("transaction", "batch_writes"))]
    return ", ".join(f"`{word}`" for word in told) or "``"


def best_of_ours(part):
    found = [cell for cell in shown(part) if cell["contender"].startswith(OURS) and cell["values"]]
    return min(found, key=lambda cell: middle(part, cell), default=None)


def _brief(part, cell):
    if cell is None or not cell["values"]:
        return ""
    told, base = middle(part, cell), baseline(part)
    return number(told) if cell["contender"] == part["baseline"] or not base else f"{number(told)} ({base / told:.1f})"


def with_block(readme, found):
    """The README with its block rewritten; as it is, if it has none."""
    before, opening, rest = readme.partition(MARKS[0])
    _old, closing, after = rest.partition(MARKS[1])
    if not closing:
        return readme
    return f"{before}{opening}\n{block(found)}\n{closing}{after}"
