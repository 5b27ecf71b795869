"""`carry` takes tenants, audit actors and other context to the workers, for each object the one of its caller."""

import subprocess
import sys
import textwrap
from contextlib import contextmanager
from contextvars import ContextVar, copy_context

import pytest
from django.db import connections

from poolsave import InvalidOperation, InvalidOption, Status, concurrent_saves, pooled_operation
from tests.models import AuditEntry, Tag, actor
from tests.support import carriers, pools
from tests.support.carriers import Tenant, colour, depth

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


@contextmanager
def setting(variable, value):
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def test_a_context_variable_and_an_object_go_along(pool):
    tells_depth = carriers.tells_depth.using(**pool, carry=[depth, colour])
    with setting(colour, "red"):
        stream = carriers.tells_colour.using(**pool, carry=[colour]).stream(range(6))
        depth.value = 7
        assert tells_depth.map(range(6)).values == [7] * 6
    depth.value = None
    assert [outcome.value for outcome in stream] == ["red"] * 6, "as it was when stream() was called"
    assert tells_depth.map([1]).values == [None]


def test_every_call_of_a_block_has_the_context_of_its_submission(pool):
    with concurrent_saves(**pool, workers=2, transaction=None, carry=[colour, depth]) as saves:
        futures = []
        for number in range(12):
            with setting(colour, f"colour {number}"):
                depth.value = number
                futures.append((saves.submit(carriers.tells_colour, 1), saves.submit(carriers.tells_depth, 1)))
        depth.value = None
        found = [(one.result(30), other.result(30)) for one, other in futures]
    assert found == [(f"colour {number}", number) for number in range(12)]


def test_unset_variable_is_unset_in_the_worker(pool):
    copy_context().run(_unset_is_unset, pool)  # serial runs in the caller's own context, as an ordinary call does


def _unset_is_unset(pool):
    assert carriers.tells_colour.using(**pool, carry=[colour]).map([1, 2]).values == [None, None]
    with setting(colour, "of the block"):  # which a forked worker inherits
        block = concurrent_saves(**pool, workers=1, transaction=None, carry=[colour])
        saves = block.__enter__()
    first, second = (saves.submit(carriers.tells_and_sets_colour, name) for name in ("left behind", "too"))
    with setting(colour, "red"):
        third = saves.submit(carriers.tells_and_sets_colour, "blue")
    fourth = saves.submit(carriers.tells_colour, 1)
    block.__exit__(None, None, None)
    left = "left behind" if pool.get("executor") == "serial" else None
    assert [future.result(30) for future in (first, second, third, fourth)] == [None, left, "red", left]


def test_variable_set_by_an_object_is_gone_with_the_next(pool):
    operation = carriers.tells_and_sets_colour.using(**pool, workers=1, chunksize=3, carry=[colour])
    with setting(colour, "red"):
        assert operation.map(["blue", "green", "white"]).values == ["red"] * 3
        assert colour.get() == "red"


def test_the_context_is_in_force_until_the_value_is_on_its_way(start_method):
    with setting(colour, "red"):
        operation = carriers.gives_late.using(start_method=start_method, carry=[colour])
        assert operation.map([1]).values == ["red"]
        with concurrent_saves(start_method=start_method, workers=1, transaction=None, carry=[colour]) as saves:
            assert saves.submit(carriers.gives_late, 1).result(30) == "red"


@pytest.fixture
def schemas():
    with connections["postgres"].cursor() as cursor:
        for schema in ("tenant_a", "tenant_b"):
            cursor.execute(f"CREATE SCHEMA {schema}")
            cursor.execute(f"CREATE TABLE {schema}.tests_tag (LIKE public.tests_tag INCLUDING ALL)")
    yield
    Tenant.chosen = None
    with connections["postgres"].cursor() as cursor:
        cursor.execute("DROP SCHEMA tenant_a, tenant_b CASCADE")


def tags(schema):
    with connections["postgres"].cursor() as cursor:
        cursor.execute(f"SELECT name FROM {schema}.tests_tag ORDER BY name")
        return [name for (name,) in cursor.fetchall()]


@pytest.fixture(params=["object", "chunk"])
def transaction_per(request):
    return request.param


@pytest.fixture
def tenancy(transaction_per):
    return {"databases": ("postgres",), "carry": [Tenant()], "transaction": transaction_per}


def test_a_tenant_s_rows_go_to_its_own_schema(schemas, pool, tenancy):
    operation = carriers.save_tag.using(**pool, **tenancy, chunksize=3)
    for schema in ("tenant_a", "tenant_b"):
        Tenant.chosen = schema
        assert operation.map(["a", "fails", "b", "c"]).failed == 1
    assert tags("tenant_a") == tags("tenant_b") == ["a", "b", "c"]
    assert tags("public") == []


def test_every_object_of_a_block_goes_to_its_own_tenant(schemas, start_method, tenancy):
    with concurrent_saves(start_method=start_method, workers=2, chunksize=4, on_failure="collect", **tenancy) as saves:
        for number in range(20):
            Tenant.chosen = f"tenant_{'ab'[number % 2]}"
            saves.save(Tag(name=f"{number:02}"), using="postgres")
            saves.submit(carriers.save_tag, f"fails {number}")
    assert (saves.report.succeeded, saves.report.failed) == (20, 20)
    assert tags("tenant_a") == [f"{number:02}" for number in range(0, 20, 2)]
    assert tags("tenant_b") == [f"{number:02}" for number in range(1, 20, 2)]
    assert tags("public") == []


def test_rows_of_a_queryset_are_fetched_in_the_context(schemas, pool, tenancy):
    with connections["postgres"].cursor() as cursor:
        for schema in ("public", "tenant_a", "tenant_b"):
            cursor.execute(f"INSERT INTO {schema}.tests_tag (id, name) VALUES (1, '{schema} 1'), (2, '{schema} 2')")
        cursor.execute("SET search_path TO tenant_b")  # where the caller reads the keys
    Tenant.chosen = "tenant_b"
    report = carriers.tells_name.using(**pool, **tenancy, chunksize=2).map(Tag.objects.using("postgres").all())
    assert report.values == ["tenant_b 1", "tenant_b 2"]


def test_set_local_of_a_carrier_ends_with_the_transaction(schemas):
    with concurrent_saves(workers=1, databases=("postgres",), carry=[Tenant()]) as saves:
        Tenant.chosen = "tenant_a"
        theirs = saves.submit(carriers.tells_search_path, 1)
        Tenant.chosen = None
        after = saves.submit(carriers.tells_search_path, 1)
    assert theirs.result() == "tenant_a"
    assert after.result() == '"$user", public'


def test_a_receiver_knows_who_acts(pool, alias, transaction_per):
    operation = carriers.save_audited.using(**pool, databases=(alias,), transaction=transaction_per, carry=[actor])
    with setting(actor, "ann"):
        assert operation.bind(alias=alias).map(["a", "bad", "b"]).failed == 1
    with setting(actor, "bob"):
        operation.bind(alias=alias).map(["c"]).raise_if_failed()
    operation.bind(alias=alias).map(["d"]).raise_if_failed()
    entries = AuditEntry.objects.using(alias).order_by("tag").values_list("actor", "tag")
    assert list(entries) == [("ann", "a"), ("ann", "b"), ("bob", "c")]


def test_callbacks_run_in_the_context_of_their_object(pool, alias, transaction_per):
    options = {**pool, "databases": (alias,), "transaction": transaction_per, "carry": [actor]}
    with concurrent_saves(**options, workers=1, chunksize=2) as saves:
        for name in ("ann", "bob", "cy"):
            with setting(actor, name):
                saves.submit(carriers.calls_back_with_actor, f"by {name}", alias=alias)
    entries = AuditEntry.objects.using(alias).order_by("tag").values_list("actor", "tag")
    assert list(entries) == [(name, f"by {name} called") for name in ("ann", "bob", "cy")]


def test_every_further_try_has_the_context(alias):
    operation = carriers.tells_actor_after_retries.using(databases=("postgres",), workers=1, carry=[actor])
    with setting(actor, "ann"):
        report = operation.using(keep="all").map([alias])
    assert report.values == ["ann"]
    assert [outcome.attempts for outcome in report] == [3]


def test_an_error_of_restore_is_the_failure_of_its_object(pool, alias, transaction_per):
    options = {**pool, "databases": (alias,), "transaction": transaction_per, "carry": [colour, carriers.RefusesBad()]}
    with concurrent_saves(**options, workers=1, on_failure="collect") as saves:
        for number, name in enumerate(["good", "bad", "good"]):
            with setting(colour, name):
                saves.save(Tag(name=str(number)), using=alias)
    assert [(type(one.error), one.status) for one in saves.report.failures] == [(LookupError, Status.FAILED)]
    assert sorted(Tag.objects.using(alias).values_list("name", flat=True)) == ["0", "2"]


@pytest.mark.parametrize("transaction", ["object", None])
def test_error_suppressed_by_a_context_manager_is_a_failure(alias, transaction):
    operation = carriers.save_audited.using(
        databases=(alias,), carry=[carriers.Suppresses()], executor="serial", transaction=transaction
    )
    report = operation.bind(alias=alias).map(["a", "bad"])
    assert [(type(one.error), one.item) for one in report.failures] == [(ValueError, "bad")]


def test_restore_that_is_a_generator_is_refused():
    report = carriers.tells_colour.using(executor="serial", carry=[carriers.Generates()]).map([1])
    (failure,) = report.failures
    assert isinstance(failure.error, InvalidOperation)
    assert "@contextmanager" in str(failure.error)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_variable_that_workers_cannot_find_is_refused_at_once(method):
    nameless = ContextVar("nameless")
    read = []
    with pytest.raises(InvalidOption, match="define 'nameless' at the top of a module") as caught:
        carriers.tells_colour.using(start_method=method, carry=[nameless]).map(read.append(n) or n for n in range(3))
    assert (caught.value.name, caught.value.value) == ("carry", nameless)
    assert read == []


def test_local_variable_is_carried_where_nothing_is_pickled():
    """A variable of no module works wherever a lambda does."""
    nameless = ContextVar("nameless")
    tells = pooled_operation(transaction=None, workers=2, progress=False)(lambda _item: nameless.get(None))
    with setting(nameless, "found"):
        for pool in ("fork", "thread", "serial"):
            assert tells.using(**pools.POOLS[pool], carry=[nameless]).map([1, 2]).values == ["found", "found"]


def test_a_state_that_cannot_be_pickled_is_refused_by_name():
    locking = carriers.CapturesALock()
    assert carriers.tells_colour.using(executor="thread", carry=[locking]).map([1]).ok
    with pytest.raises(InvalidOption, match="cannot be pickled") as caught:
        carriers.tells_colour.using(start_method="spawn", carry=[locking]).map([1])
    assert caught.value.value is locking
    with concurrent_saves(workers=1, transaction=None, carry=[locking]) as saves:
        with pytest.raises(InvalidOption, match="cannot be pickled"):
            saves.submit(carriers.tells_colour, 1)
    assert saves.report.total == 0


SCRIPT = """
    import sys
    from contextvars import ContextVar
    from poolsave import pooled_operation

    actor = ContextVar("actor")

    @pooled_operation(transaction=None, workers=2, progress=False, carry=[actor])
    def tells(_item):
        return actor.get()

    if __name__ == "__main__":
        actor.set("ann")
        print(tells.using(start_method=sys.argv[1]).map([1, 2]).values)
"""


def test_a_variable_of_a_script_without_django_settings_is_found(tmp_path, start_method, monkeypatch):
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run(
        [sys.executable, str(script), start_method], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("['ann', 'ann']\n", "")
