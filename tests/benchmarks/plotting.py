"""What was found, as a picture: bars for what takes time, lines for memory."""

from statistics import median

from tests.benchmarks.rendering import OURS, middle, shown, values

BARS = [
    "users_postgres", "users_sqlite", "users_sqlite_default",
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
    told = [word.removeprefix("transaction=") for word in cell["setting"].split(", ") if word.startswith("transaction")]
    return ", ".join([cell["contender"], *told])


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
