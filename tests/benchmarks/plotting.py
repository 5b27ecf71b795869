"""What was found, as a picture: bars for what takes time, lines for memory."""

from statistics import median

from tests.benchmarks.rendering import OURS, middle, shown, values

BARS = [
    "users_postgres", "users_far", "users_sqlite", "users_sqlite_default",
    "hashing", "waiting", "waiting_one_row",
    "table", "single_no_ops", "no_ops",
    "no_op_rows", "start_up",
]  # fmt: skip
COLOURS = {True: "#0c7c59", False: "#b8bec4"}
"""poolsave and the others."""


def plot(found, path):
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    parts = {part["key"]: part for part in found["parts"]}
    panels = [(bars, parts[key]) for key in BARS if key in parts]
    panels += [(lines, parts["memory"])] if "memory" in parts else []
    rows = max(1, -(-len(panels) // 3))
    figure, places = plt.subplots(rows, 3, figsize=(18, 4.4 * rows), layout="constrained", squeeze=False)
    for place in places.flat:
        place.set_visible(False)
    for (draw, part), place in zip(panels, places.flat, strict=False):
        place.set_visible(True)
        draw(part, place)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def bars(part, place):
    """A bar as long as the median, with the least and the most as its whiskers."""
    cells = [cell for cell in shown(part) if cell["values"]][::-1]
    medians = [middle(part, cell) for cell in cells]
    spread = [
        [one - min(values(part, cell)) for one, cell in zip(medians, cells, strict=True)],
        [max(values(part, cell)) - one for one, cell in zip(medians, cells, strict=True)],
    ]
    colours = [COLOURS[cell["contender"].startswith(OURS)] for cell in cells]
    place.barh([_label(cell) for cell in cells], medians, xerr=spread, color=colours, ecolor="#555555")
    place.set_title(part["title"], fontsize=10, loc="left")
    place.set_xlabel(f"{part['unit']}; less is better", fontsize=8)
    place.tick_params(labelsize=8)
    if part["per"]:
        place.set_xscale("log")
    place.spines[["top", "right"]].set_visible(False)


def _label(cell):
    words = cell["setting"].split(", ")
    told = [word.removeprefix("transaction=") for word in words if word.startswith(("transaction", "batch", "workers"))]
    return ", ".join([cell["contender"], *told])


SIX = {
    "loop": ("plain loop", ""),
    "4 processes, hand-written": ("article", ""),
    "threads": ("ThreadPoolExecutor.map", ""),
    "chunks by hand": ("hand-written best", ""),
    'poolsave, workers="auto"': ("poolsave process", "workers=auto, transaction=object"),
    "poolsave, batch_writes": ("poolsave process", "batch_writes=True"),
}
"""For a reader in a hurry: a label, a contender, and what its setting contains."""
USERS = 10_000


def plot_users(found, path):
    """Two panels of six bars: seconds for so many users, with the server on the same machine and 1 ms away."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    parts = {part["key"]: part for part in found["parts"]}
    titles = {"users_postgres": "PostgreSQL on the same machine", "users_far": "PostgreSQL 1 ms away"}
    figure, places = plt.subplots(1, 2, figsize=(12, 3.2), layout="constrained")
    for (key, title), place in zip(titles.items(), places, strict=True):
        seconds = {label: seconds_of(parts[key], *wanted) for label, wanted in SIX.items()}
        colours = [COLOURS[name.startswith("poolsave")] for name in SIX]
        place.barh([*seconds][::-1], [*seconds.values()][::-1], color=colours[::-1])
        for row, value in enumerate([*seconds.values()][::-1]):
            place.text(value, row, f" {value:.3g}", va="center", fontsize=9)
        place.set_title(title, fontsize=10, loc="left")
        place.set_xlabel(f"seconds for {USERS:,} users; less is better", fontsize=8)
        place.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def seconds_of(part, contender, setting):
    """The best median of that contender, for so many users."""
    found = [cell for cell in part["cells"] if cell["contender"] == contender and setting in cell["setting"]]
    return min(middle(part, cell) for cell in found) * USERS / part["objects"]


def lines(part, place):
    for name in dict.fromkeys(cell["contender"] for cell in part["cells"]):
        cells = [cell for cell in part["cells"] if cell["contender"] == name and cell["values"]]
        counts = [int(cell["case"].replace(",", "")) for cell in cells]
        place.plot(counts, [median(values(part, cell)) for cell in cells], marker="o", label=name)
    place.set_xscale("log")
    place.set_title(part["title"], fontsize=10, loc="left")
    place.set_xlabel("objects", fontsize=8)
    place.set_ylabel("MB; less is better", fontsize=8)
    place.tick_params(labelsize=8)
    place.legend(fontsize=8, frameon=False)
    place.spines[["top", "right"]].set_visible(False)
