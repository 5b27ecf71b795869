"""Objects of one key run one after the other, in input order, and each of them once, whatever happens to their workers.

What is right is the order of the input; when an object began and ended is told by the object itself, in a file.
"""

import os
import random
import signal
import statistics
import threading
import time
from collections import defaultdict
from operator import itemgetter

import pytest
from django.contrib.auth.models import Group

from poolsave import InvalidOption, Status, concurrent_saves, pooled_operation
from tests.models import Tag
from tests.support.pools import EXECUTORS

KILLS, FAILS = 4_321, 4_400


@pooled_operation(workers=8, progress=False, transaction=None, key=itemgetter("customer"))
def logs(row, *, path, seconds=0.001, killers=(KILLS,)):
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, f"{row['customer']} {row['number']} begins\n".encode())
        time.sleep(random.random() * seconds)
        if row["number"] in killers:
            os.kill(os.getpid(), signal.SIGKILL)
        if row["number"] == FAILS:
            raise ValueError("no")
        os.write(file, f"{row['customer']} {row['number']} ends\n".encode())
    finally:
        os.close(file)
    return row["number"]


def rows(count, customers, *, seed=1):
    numbers = random.Random(seed)
    return [{"customer": numbers.randrange(customers), "number": number} for number in range(count)]


def check_log(path, objects, *, broken=()):
    """Each object of a key begins after the one before it has ended."""
    lines = defaultdict(list)
    for line in path.read_text().splitlines():
        customer, number, what = line.split()
        lines[int(customer)].append((int(number), what))
    expected = defaultdict(list)
    for row in objects:
        ends = [] if row["number"] in broken else [(row["number"], "ends")]
        expected[row["customer"]] += [(row["number"], "begins"), *ends]
    assert lines == expected


def test_order_of_each_key_survives_a_killed_worker(tmp_path):
    path, objects = tmp_path / "log", rows(10_000, 500)
    report = logs.using(start_method="fork", chunksize=20).bind(path=str(path)).map(iter(objects))
    check_log(path, objects, broken=[KILLS, FAILS])
    assert [(one.index, one.status, one.item) for one in report.failures] == [
        (KILLS, Status.LOST, objects[KILLS]),
        (FAILS, Status.FAILED, objects[FAILS]),
    ]
    assert report.succeeded == 9_998
    assert report.values.count(None) < 20
    assert {*report.values} - {None} <= {*range(10_000)} - {KILLS, FAILS}  # None: the killed worker took it along
    assert all(value in (None, index) for index, value in zip(indices_of(report), report.values, strict=True))


def indices_of(report):
    return [outcome.index for outcome in report if outcome.status is Status.SUCCEEDED]


@pytest.mark.parametrize("name", ["serial", "thread", "forkserver", "process-pool", "dask", "dask-threads"])
def test_order_of_each_key_is_kept_by_each_executor(tmp_path, name):
    path, objects = tmp_path / "log", rows(300, 20)
    with EXECUTORS[name].opened() as options:
        outcomes = [*logs.using(**options, workers=4).bind(path=str(path)).stream(objects, ordered=True)]
    check_log(path, objects)
    assert [outcome.value for outcome in outcomes] == [*range(300)]
    assert [outcome.index for outcome in outcomes] == [*range(300)]


@pooled_operation(workers=4, progress=False, key=itemgetter(0))
def saves_tag(pair, *, alias):
    customer, number = pair
    if number % 50 == 7:
        raise ValueError("no")
    return Tag.objects.using(alias).create(name=f"{customer} {number}").pk


@pytest.mark.django_db(transaction=True, databases="__all__")
@pytest.mark.parametrize("alias", ["default", "postgres"])
@pytest.mark.parametrize("transaction", ["object", "chunk"])
def test_rows_of_a_key_are_saved_in_input_order(alias, transaction):
    objects = [(row["customer"], row["number"]) for row in rows(300, 10)]
    operation = saves_tag.using(databases=(alias,), transaction=transaction, chunksize=7).bind(alias=alias)
    report = operation.map(objects)
    assert report.failed == len([number for _customer, number in objects if number % 50 == 7])
    found = defaultdict(list)
    for name in Tag.objects.using(alias).order_by("pk").values_list("name", flat=True):
        customer, number = map(int, name.split())
        found[customer].append(number)
    assert all(numbers == sorted(numbers) for numbers in found.values())
    assert sum(map(len, found.values())) == report.succeeded


@pooled_operation(workers=2, progress=False, transaction=None)
def echoes(item):
    return item


def test_object_without_a_key_fails_alone():
    keyed = echoes.using(key=itemgetter("name"), start_method="fork")
    objects = [{"name": "a"}, {}, {"name": []}, {"name": "b"}, 5]
    report = keyed.map(objects)
    assert report.values == [objects[0], objects[3]]
    assert [failure.index for failure in report.failures] == [1, 2, 4]
    assert [type(failure.error) for failure in report.failures] == [KeyError, TypeError, TypeError]
    assert "about the key" in report.failures[0].error.__notes__[0]


def test_object_that_cannot_be_sent_keeps_the_order(tmp_path):
    path, objects = tmp_path / "log", [{"customer": max(0, number - 60), "number": number} for number in range(200)]
    unpicklable = {"customer": 0, "number": 30, "lock": open(os.devnull)}
    sent = [*objects[:30], unpicklable, *objects[31:]]
    report = logs.using(start_method="fork", chunksize=60).bind(path=str(path)).map(sent)
    unpicklable["lock"].close()
    check_log(path, objects[:30] + objects[31:])
    assert [failure.index for failure in report.failures] == [30]


@pytest.mark.parametrize(("window", "bound"), [(None, 1_000), (50, 50)])
def test_waiting_objects_are_bounded(window, bound):
    """All are of one key, so that only one worker has work."""
    ahead = []

    def numbers():
        for number in range(5_000):
            pulled.append(number)
            yield number

    pulled = []
    keyed = echoes.using(key=lambda _number: "same", start_method="fork", chunksize=1, window=window)
    for count, _outcome in enumerate(keyed.stream(numbers()), 1):
        ahead.append(len(pulled) - count)
    assert count == 5_000
    assert max(ahead) <= bound + 4 * 2


def test_run_that_stops_says_what_it_has_not_run():
    keyed = echoes.using(key=lambda number: number % 3, start_method="fork", chunksize=2)
    objects = [1, 2, 3, "no number", 5, 6, 7, 8] * 20
    report = keyed.using(max_failures=1, keep="all").map(objects)
    assert report.failed == 1
    assert [(one.index, one.item) for one in report] == [*enumerate(objects)][: report.total]
    assert report.total == report.succeeded + report.failed + report.skipped


@pytest.mark.django_db(transaction=True)
def test_key_is_refused_where_no_order_is_kept():
    keyed = echoes.using(key=str)
    with pytest.raises(InvalidOption, match=r"key=.*queryset\.iterator\(\)"):
        keyed.map(Group.objects.all())
    with pytest.raises(InvalidOption, match=r"key=.*a pipeline keeps no order"):
        (keyed | echoes).map([1])
    with pytest.raises(InvalidOption, match=r"key=.*a block starts its calls"), concurrent_saves(key=str):
        pass
    with concurrent_saves(executor="serial", transaction=None) as saves:
        with pytest.raises(InvalidOption, match=r"key=.*a block starts its calls"):
            saves.map(keyed, [1])
    with pytest.raises(InvalidOption, match=r"key=5"):
        echoes.using(key=5)


@pooled_operation(workers=8, progress=False, transaction=None, start_method="fork")
def waits(row):
    time.sleep(row["seconds"])


def throughput_with_keys(count, rounds=3):
    """As a share of that without keys: the median of so many rounds of objects that wait for 1 to 5 ms."""
    numbers = random.Random(5)
    objects = [{**row, "seconds": numbers.uniform(0.001, 0.005)} for row in rows(count, 500)]
    shares = []
    for _round in range(rounds):
        seconds = []
        for key in (None, itemgetter("customer")):
            began = time.perf_counter()
            assert waits.using(key=key).map(iter(objects)).succeeded == count
            seconds.append(time.perf_counter() - began)
        shares.append(seconds[0] / seconds[1])
        print(f"without keys {seconds[0]:.2f} s, with keys {seconds[1]:.2f} s")
    return statistics.median(shares)


def test_keys_that_are_many_cost_little():
    assert throughput_with_keys(1_000) > 0.5  # 0.8 and more, if nothing else runs


@pytest.mark.chaos
def test_many_keys_leave_four_fifths_of_the_throughput():
    assert throughput_with_keys(10_000) >= 0.8


@pytest.mark.chaos
@pytest.mark.parametrize("options", [{}, {"chunksize": 1}, {"chunksize": 20}, {"window": 100}])
def test_order_of_each_key_survives_workers_killed_at_random(tmp_path, options):
    path, objects = tmp_path / "log", rows(10_000, 500, seed=random.randrange(2**32))
    killers = random.sample(range(10_000), 20)
    report = logs.using(start_method="fork", **options).bind(path=str(path), killers=killers).map(iter(objects))
    check_log(path, objects, broken=[*killers, FAILS])
    assert sorted(one.index for one in report.failures) == sorted({*killers, FAILS})
    assert report.succeeded == 10_000 - len({*killers, FAILS})


def test_first_undelivered_object_goes_out_first():
    """Else objects behind it fill the window with outcomes that wait for it."""
    begun, c_has_begun, all_but_first_have_ended = [], threading.Event(), threading.Event()

    def waits(name):
        begun.append(name)
        if name == "a0":
            assert all_but_first_have_ended.wait(30)
        if name == "b2":
            assert c_has_begun.wait(30)
        if name == "c4":
            c_has_begun.set()

    def shows(done, _total):
        if done == 2:
            all_but_first_have_ended.set()

    options = {"executor": "thread", "workers": 3, "window": 3, "chunksize": 1, "transaction": None}
    operation = pooled_operation(**options, progress=shows, key=itemgetter(0))(waits)
    outcomes = [*operation.stream(["a0", "a1", "b2", "b3", "c4"], ordered=True)]
    assert [outcome.index for outcome in outcomes] == [*range(5)]
    assert begun.index("a1") < begun.index("b3")


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt])
def test_exception_that_ends_the_run_in_key_drops_no_object(raised):
    def key(number):
        if number == 25:
            raise raised("from a handler")
        return number

    keyed = echoes.using(key=key, executor="thread", chunksize=10, keep="all")
    with pytest.raises(raised) as caught:
        keyed.map([*range(40)])
    outcomes = [*caught.value.report]
    assert [(one.index, one.item) for one in outcomes] == [(number, number) for number in range(30)]
    assert {one.status for one in outcomes[20:]} == {Status.SKIPPED}
