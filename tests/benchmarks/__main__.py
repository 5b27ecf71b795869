"""Measure poolsave beside what else there is, and write a page, a picture and the raw figures.

    python -m tests.benchmarks
    python -m tests.benchmarks --only no_ops,users_postgres --rounds 3
    python -m tests.benchmarks --quick --output /tmp/benchmarks

A whole run goes to docs/benchmarks.{md,png,json} and into the README's block. A part of it, or a quick one, is printed,
and written only where --output says. Every contender is measured once per round, in a process of its own; one that is
not installed is said to be so.
"""

import argparse
import json
import sys
from pathlib import Path

from tests.benchmarks import asking, databases, rendering

ROOT = Path(__file__).parent.parent.parent


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, help="how often each is measured (default: 5)")
    parser.add_argument("--only", default="", help="names of parts, with commas between them (default: all)")
    parser.add_argument("--quick", action="store_true", help="one round over few objects, to see that it works")
    parser.add_argument(
        "--output", type=Path, help="a folder for the results (a whole run: docs, and the README's block)"
    )
    parser.add_argument("--into", type=Path, help="figures of an earlier run, whose parts these replace")
    parser.add_argument("--figures", type=Path, help="measure nothing, and tell what this file has of an earlier run")
    return parser.parse_args(arguments)


def main(arguments):
    found = json.loads(arguments.figures.read_text()) if arguments.figures else measured(arguments)
    print(rendering.page(found))
    print(asking.ratios(found))
    whole = not (arguments.only or arguments.quick)
    if arguments.output or whole:
        write(found, arguments.output or ROOT / "docs")
    if whole and not arguments.output:
        readme = ROOT / "README.md"
        readme.write_text(rendering.with_block(readme.read_text(), found))


def merged(earlier, found, order):
    """The earlier figures in this order, with this run's parts in place of theirs, and when those were measured."""
    parts = {part["key"]: part for part in earlier["parts"]}
    measured_on = {name: found["measured_on"][name] for name in ("date", "load before")}
    parts |= {part["key"]: {**part, "measured_on": measured_on} for part in found["parts"]}
    return {**earlier, "parts": [parts[key] for key in order if key in parts]}


def measured(arguments):
    with databases.own_databases():
        from tests.benchmarks import catalogue, running  # which read Django's settings, and so have to come after

        found = running.run(arguments)
    return merged(json.loads(arguments.into.read_text()), found, catalogue.PARTS) if arguments.into else found


def write(found, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmarks.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "benchmarks.md").write_text(rendering.page(found))
    try:
        from tests.benchmarks import plotting

        plotting.plot(found, folder / "benchmarks.png")
        if {"users_postgres", "users_far"} <= {part["key"] for part in found["parts"]}:
            plotting.plot_users(found, folder / "users.png")
    except ModuleNotFoundError as error:
        print(f"no picture: {error.name} is not installed; pip install -e '.[bench]'")
    print(f"written to {folder}")


if __name__ == "__main__":
    sys.exit(main(parse(sys.argv[1:])))
