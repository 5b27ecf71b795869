"""Endless and very long inputs, in a process of their own so that the peak is theirs alone."""

import os
import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
    import resource
    import sys

    from poolsave import concurrent_saves, pooled_operation

    @pooled_operation(transaction=None, workers=2, progress=False, keep="failures", executor=sys.argv[1])
    def doubles(number):
        return number * 2

    def one_by_one(count):
        yield from range(count)

    def submitted(count):
        with concurrent_saves(transaction=None, workers=2, keep="failures", executor=sys.argv[1]) as saves:
            for number in range(count):
                saves.submit(doubles, number)

    if __name__ == "__main__":
        use = {"map": lambda count: doubles.map(one_by_one(count)), "submit": submitted}[sys.argv[2]]
        use(10_000)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        use(int(sys.argv[3]))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(
    ("executor", "use", "count"),
    [
        ("process", "map", 1_000_000),
        ("thread", "map", 1_000_000),
        ("serial", "map", 1_000_000),
        ("process", "submit", 50_000),
    ],
)
def test_the_parent_s_peak_does_not_grow_with_the_input(tmp_path, executor, use, count):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    grown = subprocess.run(
        [sys.executable, str(script), executor, use, str(count)],
        capture_output=True, text=True, timeout=55, check=True, env=environment,
    ).stdout  # fmt: skip
    assert int(grown) < 40 * 1024
