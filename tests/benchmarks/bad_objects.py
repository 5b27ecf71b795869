"""What one bad object among 10,000 costs a run, by the kind of its badness, beside a run without it.

    python -m tests.benchmarks.bad_objects

The function does nothing for the others, which is the hardest case. Bad and clean runs alternate; only the ratios mean
something.
"""

import statistics
import time

import django

OBJECTS = 10_000
ROUNDS = 7


def main():
    django.setup()
    from tests.contract import cases

    does = cases.does.using(workers=2, start_method="fork")
    takes = cases.gives_type.using(workers=2, start_method="fork")
    kinds = {f"raises: {name}": (does, name) for name in cases.RAISED}
    kinds |= {f"returns: {name}": (does, name) for name in cases.RETURNED}
    kinds |= {f"dies: {name}": (does, name) for name in cases.DEATHS}
    kinds |= {"object: raises when pickled": (takes, cases.RaisesWhenPickled())}
    kinds |= {"object: raises when restored": (takes, cases.RaisesWhenRestored())}
    print(f"{'':35} {'clean':>8} {'bad':>8} {'ratio':>7}")
    for kind, (operation, bad) in kinds.items():
        clean, with_bad = [], []
        for _ in range(ROUNDS):
            clean.append(seconds(operation, range(OBJECTS), 0))
            with_bad.append(seconds(operation, [*range(OBJECTS // 2), bad, *range(OBJECTS // 2 - 1)], 1))
        one, other = statistics.median(clean), statistics.median(with_bad)
        print(f"{kind:35} {one:8.3f} {other:8.3f} {other / one:7.2f}", flush=True)


def seconds(operation, objects, failures):
    began = time.perf_counter()
    report = operation.map(objects)
    took = time.perf_counter() - began
    assert (report.total, len(report.failures)) == (OBJECTS, failures)
    return took


if __name__ == "__main__":
    main()
