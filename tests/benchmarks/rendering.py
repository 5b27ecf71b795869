"""What was found, as Markdown: a pure function of the raw figures."""

from statistics import median


def shown(part):
    """Of each contender in each case the cell with the best median, which stands for its best setting."""
    best = {}
    for cell in part["cells"]:
        place = (cell["contender"], cell["case"], _own_row(cell))
        if place not in best or _median(cell) < _median(best[place]):
            best[place] = cell
    return list(best.values())


def _own_row(cell):
    """Settings that are not chunk sizes are asked about, and so are not chosen among."""
    return tuple(word for word in cell["setting"].split(", ") if word and not word.startswith(("chunksize", "backend")))


def _median(cell):
    return median(cell["values"]) if cell["values"] else float("inf")


def text(found):
    """All parts."""
    facts = "\n".join(f"- {name}: {value}" for name, value in found["measured_on"].items())
    return "\n\n".join(["# Benchmarks", facts, *map(section, found["parts"])]) + "\n"


def section(part):
    return f"## {part['title']}\n\n{part['about']}\n\n{table(part)}"


def table(part):
    cells = shown(part)
    base = next((_median(cell) for cell in cells if cell["contender"] == part["baseline"]), None)
    lines = [
        f"| contender | settings | {part['unit']} (median) | least .. most | x {part['baseline']} |",
        "|---|---|---:|---:|---:|",
    ]
    for cell in cells:
        lines.append("| " + " | ".join([cell["contender"], cell["setting"], *numbers(part, cell, base)]) + " |")
    return "\n".join(lines)


def numbers(part, cell, base):
    if not cell["values"]:
        return [cell["note"], "", ""]
    factor = 1e6 / part["per"] if part["per"] else 1
    values = [value * factor for value in cell["values"]]
    return [
        f"{median(values):.3g}",
        f"{min(values):.3g} .. {max(values):.3g}",
        f"{base / _median(cell):.2f}" if base else "",
    ]
