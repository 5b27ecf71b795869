"""Measure poolsave beside what else there is, and write docs/benchmarks.{md,png,json} and the README's block.

    python -m tests.benchmarks
    python -m tests.benchmarks --only no_ops,users_postgres --rounds 3
    python -m tests.benchmarks --quick --output /tmp/benchmarks

Every contender is measured once per round, in a process of its own; one that is not installed is said to be so.
"""

import argparse
import os
import sys
from pathlib import Path


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=None, help="how often each is measured (default: 5)")
    parser.add_argument("--only", default="", help="names of parts, with commas between them (default: all)")
    parser.add_argument("--quick", action="store_true", help="one round over few objects, to see that it works")
    parser.add_argument("--output", type=Path, help="a folder for the results (default: docs, and the README's block)")
    return parser.parse_args(arguments)


def main(arguments):
    from tests.benchmarks import databases

    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.benchmarks.settings"
    os.environ["POOLSAVE_BENCHMARKS_FOLDER"] = databases.own_folder()
    os.environ["POOLSAVE_BENCHMARKS_NAME"] = name = f"benchmarks_{os.getpid()}"
    from tests.benchmarks import running

    from tests.benchmarks import rendering

    with databases.own_postgres_database(name):
        found = running.run(arguments)
    print(rendering.text(found))


if __name__ == "__main__":
    sys.exit(main(parse(sys.argv[1:])))
