"""On Dask no task begins twice, whatever its scheduler repeats, and no worker with other code is used.

What holds for every executor, killed workers among it, is in tests/contract.
"""

import asyncio
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
from collections import Counter

import pytest
from distributed import Client
from django.conf import settings
from django.db import connections
from django.test import override_settings

from poolsave import ClusterUnusable, InvalidOption, Status, executors, options
from poolsave._engine.chunking import MOST_CHUNKS_PER_WORKER
from poolsave._environment.django_setup import _overridden
from poolsave._environment.versions import Versions
from poolsave._pipelines import selector as _selector
from poolsave.executors.dask import cluster as _dask_cluster
from poolsave.executors.dask import worker as _dask_worker
from tests.conftest import wait_until
from tests.contract import cases
from tests.models import Tag, Thing
from tests.support import operations, stages
from tests.support.chaos import End, audit, found_in, lines_of, names_until
from tests.support.dask_cluster import (
    address_of,
    database_of_others,
    forget_runs,
    keys_of_tasks,
    pretend,
    run_inside,
    run_states,
    transactions_of,
)

CLUSTERS = [(2, 1), (1, 2)]


@pytest.fixture(params=CLUSTERS, ids=["processes", "threads"])
def address(request):
    return address_of(*request.param)


@pytest.fixture
def client(address):
    """A client of the test's own, which looks into the workers."""
    with Client(address, set_as_default=False) as found:
        found.wait_for_workers(1)
        yield found


def on(address, operation, **options):
    return operation.using(executor=executors.DaskExecutor(address), **options)


class TestDesk:
    """The guard itself, which is asked wherever Dask puts a task."""

    @pytest.fixture
    def run_state(self, monkeypatch):
        monkeypatch.setattr(_dask_worker, "_runs", {})
        ours = Versions.here()
        assert _dask_worker.register_run("token", b"parcel", ours) == ours
        return _dask_worker._runs["token"]

    def test_a_task_begins_once(self, run_state):
        assert run_state.begin(1, 1)
        assert not run_state.begin(1, 1)
        assert run_state.begin(3, 1)
        assert run_state.begin(2, 1)
        assert not run_state.begin(2, 1)

    def test_ended_task_does_not_begin_again(self, run_state):
        """Although its number is no longer kept."""
        assert all(run_state.begin(number, number) for number in range(1, 1000))
        assert len(run_state._begun) == 1
        assert not any(run_state.begin(number, number) for number in range(1, 1000))

    def test_task_of_another_run_is_not_begun(self, run_state):
        assert _dask_worker.run_bundle("another token", 1, 1, [b""]) is None

    def test_workers_with_other_code_are_not_given_the_run(self, monkeypatch):
        monkeypatch.setattr(_dask_worker, "_runs", {})
        theirs = Versions.here()._replace(django="1.0")
        assert _dask_worker.register_run("token", b"", theirs) == Versions.here()
        assert _dask_worker._runs == {}


class NoJob:
    """Opened by no worker, since nothing is submitted."""


def test_client_that_has_closed_itself_leaves_no_thread():
    """As Dask's does where its scheduler is lost. That no thread is left is looked at after every test."""
    executor = executors.DaskExecutor(address_of(2, 1))
    executor.start(NoJob(), workers=1, longest=1)
    executor._in_loop(executor._client._close()).result(10)
    executor.stop()
    with Client(address_of(2, 1), set_as_default=False) as client:
        client.run(forget_runs)  # nothing else can, where the workers have outlived the client


def test_worker_refuses_a_task_that_the_scheduler_runs_again(tmp_path, monkeypatch):
    """The guard alone: without a pin to the worker that a task is meant for, Dask does run it again."""
    submit = Client.map
    monkeypatch.setattr(Client, "map", lambda self, *args, workers, **more: submit(
        self, *args, workers=workers, **{**more, "allow_other_workers": True}
    ))  # fmt: skip
    monkeypatch.setattr(_dask_cluster.Cluster, "_on_scheduler_event", lambda self, event: None)
    monkeypatch.setattr(_dask_cluster.Cluster, "_remove", lambda self, address: None)
    operation = on(address_of(2, 1), cases.leaves_a_trace, chunksize=2, keep="all", workers=1)
    report = operation.bind(folder=str(tmp_path), deadly=1).map(range(2))
    assert {file.read_text() for file in tmp_path.iterdir()} == {"x"}
    assert [outcome.status for outcome in report] == [Status.LOST, Status.LOST]


def test_the_scheduler_need_not_have_poolsave():
    """It restores the function of every task."""
    order = pickle.dumps(_dask_worker.RemoteCall(os.getpid))
    assert b"poolsave" not in order
    assert pickle.loads(order) == os.getpid()


@pytest.mark.parametrize("what", ["poolsave", "python", "django", "settings"])
def test_worker_with_other_versions_is_refused_by_name(address, client, what, tmp_path):
    strange = list(client.nthreads())[-1]
    client.run(pretend, what, "0.0", workers=[strange])
    try:
        with pytest.raises(ClusterUnusable) as caught:
            on(address, cases.leaves_a_trace).bind(folder=str(tmp_path), deadly=None).map(range(10))
    finally:
        client.run(pretend, None, None, workers=[strange])
    assert strange in str(caught.value)
    assert f"{what} '0.0' and not" in str(caught.value)
    assert "could not be set up" in caught.value.report.stopped
    assert list(tmp_path.iterdir()) == []
    assert on(address, operations.doubles).map([1]).values == [2]


def test_a_worker_with_other_code_that_joins_later_is_not_used(monkeypatch):
    """The worker joins after the versions of all were compared."""

    async def finds_none(_self):
        return

    monkeypatch.setattr(_dask_cluster.Cluster, "_check_versions", finds_none)
    with Client(address_of(2, 1), set_as_default=False) as client:
        client.wait_for_workers(2)
        (strange, _pid), (_ours, our_pid) = client.run(os.getpid).items()
        client.run(pretend, "poolsave", "0.0", workers=[strange])
        try:
            report = on(client, operations.doubles, chunksize=1, keep="all").map(range(20))
        finally:
            client.run(pretend, None, None, workers=[strange])
    assert {outcome.worker for outcome in report} == {our_pid}


def test_a_cluster_without_workers_ends_the_run_after_a_while(monkeypatch):
    monkeypatch.setattr(_dask_cluster, "WORKER_TIMEOUT", 0.5)
    cluster = subprocess.Popen(
        [sys.executable, "-m", "tests.support.dask_cluster", "0", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        with pytest.raises(ClusterUnusable, match="has had no worker for") as caught:
            on(cluster.stdout.readline().strip(), operations.doubles).map(range(10))
    finally:
        cluster.stdin.close()
        cluster.wait()
        cluster.stdout.close()
    assert caught.value.report.succeeded == 0
    assert caught.value.report.total == caught.value.report.skipped


def test_retired_worker_loses_its_tasks_and_a_new_one_goes_on(tmp_path):
    """The cluster starts another one when the first has ended."""
    path = tmp_path / "file"
    with Client(address_of(1, 2), set_as_default=False) as client:
        before = client.run(os.getpid)
        operation = on(client, operations.waits_for_file, chunksize=1, workers=1, keep="all")
        outcomes = operation.stream([str(path), str(path)])
        retires = threading.Thread(target=retire, args=(client, [*before], tmp_path / "file.begun"))
        retires.start()
        first = next(outcomes)
        path.touch()  # so that what it still runs comes to its end, and it with it
        (second,) = outcomes
        retires.join()
    assert first.status is Status.LOST
    assert second.ok
    assert second.worker not in before.values()


def retire(client, workers, begun):
    wait_until(begun.exists, seconds=30)
    client.retire_workers(workers)


def test_missing_address_is_refused_with_the_ways_to_give_one(settings):
    with pytest.raises(InvalidOption, match=r"POOLSAVE = \{\"dask\": \{\"address\": \"tcp://") as caught:
        operations.doubles.using(executor="dask").map([1])
    assert "DaskExecutor(client)" in str(caught.value)
    settings.POOLSAVE = {"dask": {"address": address_of(*CLUSTERS[0])}}
    assert operations.doubles.using(executor="dask").map([1]).values == [2]


@pytest.mark.parametrize("wrong", ["tcp://here", {"adress": "tcp://here"}, {"address": 5}])
def test_wrong_settings_are_refused_by_name(settings, wrong):
    settings.POOLSAVE = {"dask": wrong}
    with pytest.raises(InvalidOption, match=r"dask=.*settings.POOLSAVE.*'address'"):
        operations.doubles.map([1])


def test_a_check_says_that_there_is_no_address():
    (message,) = operations.doubles.using(executor="dask").check()
    assert message.id == "poolsave.E001"
    assert "DASK_SCHEDULER_ADDRESS" in message.msg


def test_without_the_package_the_extra_is_named():
    code = """if True:
        import sys
        sys.modules["dask"] = sys.modules["distributed"] = None
        import poolsave
        from poolsave.executors import DaskExecutor
        for make in (DaskExecutor.from_settings, lambda: DaskExecutor("tcp://here")):
            try:
                make()
            except poolsave.InvalidOption as error:
                print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("pip install 'poolsave[dask]'") == 2


def test_importing_poolsave_does_not_import_dask():
    code = "import sys, poolsave.executors; print('dask' in sys.modules, 'distributed' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_client_of_the_caller_stays_as_it_is(client):
    heard = []
    client.subscribe_topic("all", heard.append)
    report = on(client, operations.doubles, chunksize=5).map(range(20))
    assert report.values == [2 * number for number in range(20)]
    assert client.submit(pow, 2, 3).result(30) == 8
    wait_until(lambda: heard)
    assert [key for key in client.run_on_scheduler(keys_of_tasks) if str(key).startswith("poolsave")] == []
    assert set(client.run(run_states).values()) == {0}


def test_transaction_of_other_tasks_in_a_worker_is_left_alone(tmp_path, postgres_url):
    """They run in another thread of the same process."""
    begun, go_on = tmp_path / "begun", tmp_path / "go_on"
    with Client(address_of(1, 2), set_as_default=False) as client:
        theirs = client.submit(transactions_of, str(begun), str(go_on), pure=False)
        wait_until(begun.exists, seconds=30)
        assert on(client, operations.doubles, workers=1).map(range(3)).ok
        go_on.touch()
        before, after = theirs.result(30)
    assert before == after


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_a_worker_keeps_none_of_the_caller_s_databases(address, client):
    """Here they are test databases, and what others do later must not go there."""
    before = client.submit(database_of_others, pure=False).result(30)
    assert connections["postgres"].settings_dict["NAME"] not in before
    name = on(client, operations.database_name, databases=("postgres",)).bind(alias="postgres").map([1]).values
    assert name == [connections["postgres"].settings_dict["NAME"]]
    assert client.submit(database_of_others, pure=False).result(30) == before


def test_run_inside_a_task_of_dask_is_refused(address, client):
    """It would wait for its own thread."""
    assert "for whose thread the chunks would wait" in client.submit(run_inside, address, pure=False).result(30)


@pytest.mark.parametrize("wrong", ["nonsense:x", "tcp://here", "gopher://here:1"])
def test_invalid_address_is_refused_at_once(wrong):
    with pytest.raises(InvalidOption, match="tcp://scheduler:8786"):
        on(wrong, operations.doubles).map([1])


def test_callers_with_different_settings_wait_for_each_other():
    one, other = (pickle.dumps({"GREETING": word}) for word in ("hello", "goodbye"))
    seen, entered = [], threading.Event()

    def overrides_otherwise():
        entered.set()
        with _overridden(other):
            seen.append(settings.GREETING)

    thread = threading.Thread(target=overrides_otherwise)
    with _overridden(one):
        with _overridden(one):
            thread.start()
            entered.wait(30)
        thread.join(0.2)
        assert (seen, settings.GREETING) == ([], "hello")
    thread.join()
    assert seen == ["goodbye"]
    assert not hasattr(settings, "GREETING")


def test_worker_configured_by_another_run_is_refused():
    """The error names the settings that differ."""
    code = """if True:
        import pickle
        from dataclasses import replace
        from poolsave import InvalidOperation
        from poolsave._environment.django_setup import DjangoEnvironment, Localization, PackedSettings
        def packed(**settings):
            return pickle.dumps({"SECRET_KEY": "x", **settings})
        sent = PackedSettings(module=None, configured=packed(GREETING="a"), overridden=packed(), unsendable=(),
            main=(None, None))
        first = DjangoEnvironment(apps_ready=True, localization=Localization("en", None), script_prefix="/",
            urlconf=None, packed=sent)
        first.set_up()
        first.check_same_settings()
        replace(first, packed=replace(sent, configured=packed(GREETING="a", DATABASES={}))).check_same_settings()
        for other in (packed(GREETING="b"), packed(), packed(GREETING="a", DEBUG=True)):
            try:
                replace(first, packed=replace(sent, configured=other)).check_same_settings()
            except InvalidOperation as error:
                print(str(error).partition(" had ")[0].rpartition(" ")[2])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["GREETING", "GREETING", "DEBUG"]


def test_an_executor_instance_is_for_one_run_at_a_time(address):
    executor = executors.DaskExecutor(address)
    stream = operations.doubles.using(executor=executor).stream(range(100))
    next(stream)
    with pytest.raises(RuntimeError, match="running already"):
        operations.doubles.using(executor=executor).map([1])
    stream.close()
    assert operations.doubles.using(executor=executor).map([1]).values == [2]


def test_no_worker_is_sent_more_than_it_has_threads(address, client):
    """What waits in a worker would be lost with it."""
    executor = executors.DaskExecutor(address)
    room, sent = [], []
    send = _dask_cluster.Cluster.send

    async def counted(self, where, bundles, oldest):
        room.append(len(self._workers[where].running) + len(bundles) <= self._workers[where].threads)
        sent.extend(len(bundle.payloads) for bundle in bundles)
        await send(self, where, bundles, oldest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_dask_cluster.Cluster, "send", counted)
        assert operations.doubles.using(executor=executor, workers=50, chunksize=1).map(range(400)).ok
    assert sum(sent) == 400
    assert all(room)
    assert 1 < max(sent) <= MOST_CHUNKS_PER_WORKER  # chunks that take no time go several at once


@pytest.mark.parametrize(("workers", "most"), [("auto", 2), ((1, 2), 2), (1, 1)])
def test_auto_follows_the_number_of_threads_of_the_cluster(address, monkeypatch, workers, most):
    """However few CPUs the caller has."""
    monkeypatch.setattr(options, "available_cpus", lambda: 1)
    running = []
    send = _dask_cluster.Cluster.send

    async def counted(self, *of):
        await asyncio.gather(send(self, *of), count(self))

    async def count(cluster):
        running.append(sum(len(worker.running) for worker in cluster._workers.values()))

    monkeypatch.setattr(_dask_cluster.Cluster, "send", counted)
    assert on(address, operations.naps, workers=workers, chunksize=1).map([0.03] * 20).ok
    assert max(running) == most


def test_long_chunks_go_one_by_one(address):
    """They would wait for each other, and be lost together."""
    operation = on(address, operations.naps, workers=2, chunksize=1)
    sent = []
    send = _dask_cluster.Cluster.send

    async def counted(self, where, bundles, oldest):
        sent.extend(len(bundle.payloads) for bundle in bundles)
        await send(self, where, bundles, oldest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executors.DaskExecutor, "_learn", lambda self, seconds: setattr(self, "latency", 0.005))
        patch.setattr(_dask_cluster.Cluster, "send", counted)
        assert operation.map([0.05] * 12).ok
    assert sent == [1] * 12


@pytest.mark.parametrize("size", [3, 50])
def test_halt_begins_no_further_task(address, tmp_path, size):
    stream = (
        on(address, cases.leaves_a_trace, chunksize=size).bind(folder=str(tmp_path), deadly=None).stream(range(900))
    )
    next(stream)
    stream.close()
    begun = len(list(tmp_path.iterdir()))
    assert 1 <= begun < 900
    operations.doubles.map([1])
    assert len(list(tmp_path.iterdir())) == begun


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_a_queryset_goes_as_keys_and_workers_fetch_the_rows(address, django_assert_max_num_queries):
    Thing.objects.using("postgres").bulk_create(Thing() for _ in range(200))
    things = Thing.objects.using("postgres").order_by("pk")
    with django_assert_max_num_queries(10, using="postgres") as queries:
        report = on(address, operations.visit, databases=("postgres",)).bind(alias="postgres").map(things)
    assert report.succeeded == 200
    assert not any("visits" in query["sql"] for query in queries.captured_queries)
    assert set(things.values_list("visits", flat=True)) == {1}


def test_a_scheduler_that_ends_ends_the_run_with_its_report(tmp_path):
    """What its workers came to is unknown."""
    code = (
        "from distributed import LocalCluster; cluster = LocalCluster(n_workers=1, threads_per_worker=1, "
        "processes=False, protocol='tcp', dashboard_address=None); print(cluster.scheduler_address, flush=True); "
        "input()"
    )
    cluster = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        path = tmp_path / "file"
        operation = on(cluster.stdout.readline().strip(), operations.waits_for_file, chunksize=1, workers=1)
        end = threading.Thread(
            target=lambda: (wait_until((tmp_path / "file.begun").exists, seconds=30), cluster.kill())
        )
        end.start()
        with pytest.raises((OSError, asyncio.CancelledError, Exception)) as caught:
            operation.map([str(path)] * 3)
        end.join()
    finally:
        cluster.kill()
        cluster.wait()
        cluster.stdin.close()
        cluster.stdout.close()
    report = caught.value.report
    assert (report.lost, report.total) == (1, 1 + report.skipped)


@pytest.mark.parametrize("patience", [0.005, 60], ids=["asked", "told"])
def test_a_stage_of_a_pipeline_runs_in_the_cluster(address, monkeypatch, patience):
    monkeypatch.setattr(_selector, "HEARTBEAT", patience)
    report = (on(address, stages.doubles) | stages.names).using(keep="all").map(range(50))
    assert report.values == [stages.names(2 * number) for number in range(50)]
    assert [row.name for row in report.stages] == ["doubles", "names"]


def kill_workers(client, signed, count, generator):
    """Kill workers at random, each after it has saved something, if that is so long ago that another is up."""
    for _ in range(count):
        before = len(lines_of(signed))
        wait_until(lambda: len(lines_of(signed)) > before + generator.randrange(20), seconds=50)  # noqa: B023
        pid = int(lines_of(signed)[-1].split()[0])
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        gone = lambda: pid not in client.run(os.getpid, on_error="ignore").values()  # noqa: B023, E731
        wait_until(gone, seconds=30)


def audited(address, mode, signed, *, kills):
    """A run in which so many workers are killed; gives what it came to."""
    number = int(os.environ.get("POOLSAVE_TEST_CHAOS_SEED") or random.randrange(2**32))
    print(f"POOLSAVE_TEST_CHAOS_SEED={number}")
    Tag.objects.using("postgres").create(name="member")
    connections.close_all()
    with Client(address, set_as_default=False) as client:
        killer = threading.Thread(target=kill_workers, args=(client, signed, kills, random.Random(number)))
        killer.start()
        operation = on(address, operations.saves_and_signs, databases=("postgres",), transaction=mode, chunksize=4)
        names = names_until(lambda: not killer.is_alive(), 50)
        outcomes = list(operation.bind(alias="postgres", signed=str(signed)).stream(names))
        killer.join()
    counts = audit([End(one.item, one.status) for one in outcomes], found_in("postgres"), signed=Everybody())
    written = Counter(line.split()[1] for line in lines_of(signed))
    assert len({one.index for one in outcomes}) == len(outcomes) == counts.total()
    assert set(written) <= {one.item for one in outcomes}
    print(mode, kills, "kills:", dict(counts))
    return counts, written


class Everybody:
    """Where the blame is not exact, any object may be lost."""

    def __contains__(self, _name):
        return True


@pytest.mark.django_db(transaction=True, databases="__all__")
@pytest.mark.parametrize("mode", ["object", "chunk"])
def test_random_worker_deaths_save_no_object_twice(address, mode, tmp_path):
    counts, written = audited(address, mode, tmp_path / "signed", kills=3)
    assert set(written.values()) == {1}  # nothing was even begun twice: there was no transient error
    assert counts["lost"] <= 3 * 4 * 2 * MOST_CHUNKS_PER_WORKER


@pytest.mark.chaos
@pytest.mark.timeout(1500)
@pytest.mark.django_db(transaction=True, databases="__all__")
@pytest.mark.parametrize("mode", ["object", "chunk"])
def test_fifty_random_kills(address, mode, tmp_path):
    counts, written = audited(address, mode, tmp_path / "signed", kills=25)
    assert set(written.values()) == {1}
    assert counts["lost"] <= 25 * 4 * 2 * MOST_CHUNKS_PER_WORKER


def test_concurrent_executor_of_dask_is_refused(client):
    """It may run a future twice."""
    with pytest.raises(InvalidOption, match=r"DaskExecutor\(client\)"):
        operations.doubles.using(executor=client.get_executor(pure=False, retries=0)).map([1])


def test_overridden_settings_are_put_back_in_workers(address):
    """The last thread that needs them does it."""
    greet = on(address, operations.greeting, chunksize=1, workers=2)
    with override_settings(GREETING="hello"):
        assert greet.map(range(30)).values == ["hello"] * 30
    report = greet.map(range(4))
    assert [type(failure.error) for failure in report.failures] == [AttributeError] * 4


def test_result_gone_with_its_worker_is_lost_and_not_run_again(address, client, tmp_path, monkeypatch):
    """Dask takes such a task for one that was never run."""
    workers = list(client.run(os.getpid).values())
    fetch = _dask_cluster.Cluster._result
    told = []

    async def too_late(self, future):
        while future.status != "finished" and not told:
            await asyncio.sleep(0.01)
        while workers:
            told.append(os.kill(workers.pop(), signal.SIGKILL))
        return await fetch(self, future)

    monkeypatch.setattr(_dask_cluster.Cluster, "_result", too_late)
    operation = on(address, cases.leaves_a_trace, chunksize=2, keep="all", workers=1)
    report = operation.bind(folder=str(tmp_path), deadly=None).map(range(6))
    ends = list(report)
    first, second, third = ({outcome.status for outcome in ends[place : place + 2]} for place in (0, 2, 4))
    assert (first, third) == ({Status.LOST}, {Status.SUCCEEDED})
    assert second in ({Status.LOST}, {Status.SUCCEEDED})  # sent to the other one that was killed, if nobody knew yet
    assert {file.read_text() for file in tmp_path.iterdir()} == {"x"}
