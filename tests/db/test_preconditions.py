"""A run in a transaction of the caller is refused: workers see none of its rows, and would wait for its locks."""

import pytest
from django.apps import apps
from django.db import connections, transaction

from poolsave import InsideTransaction, InvalidOperation, InvalidOption, SharedMemoryDatabase, concurrent_saves
from tests.models import Person
from tests.support import operations

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


def test_a_pool_inside_atomic_is_refused_with_the_fix(pool, alias):
    operation = operations.save_person.using(**pool, databases=(alias,)).bind(alias=alias)
    if pool["executor"] == "serial":
        return
    read = []
    with transaction.atomic(using=alias):
        for use in (
            lambda: operation.map(read.append(number) for number in range(3)),
            lambda: operation.stream(read.append(number) for number in range(3)),
            lambda: concurrent_saves(**pool, databases=(alias,)).__enter__(),
        ):
            with pytest.raises(InsideTransaction, match=r"atomic = False.*executor=\"serial\"") as caught:
                use()
            assert caught.value.alias == alias
    assert read == []
    assert not Person.objects.using(alias).exists()


def test_serial_runs_inside_the_caller_s_transaction():
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        report = operations.save_person.using(executor="serial").bind(fail=("b",)).map(["a", "b", "c"])
        assert [failure.item for failure in report.failures] == ["b"]
        assert sorted(Person.objects.values_list("name", flat=True)) == ["a", "c"]
        raise ZeroDivisionError
    assert not Person.objects.exists()


def test_callbacks_wait_for_the_caller_s_own_commit():
    with transaction.atomic():
        assert operations.with_callback.using(executor="serial").map(["a"]).ok
        assert Person.objects.count() == 1
    assert sorted(Person.objects.values_list("name", flat=True)) == ["a", "a called"]


def test_an_open_transaction_without_autocommit_is_refused():
    connection = connections["default"]
    connection.set_autocommit(False)
    try:
        with pytest.raises(InsideTransaction, match=r"its autocommit is off.*call transaction.commit\(\) or"):
            operations.save_person.map(["a"])
    finally:
        connection.rollback()
        connection.set_autocommit(True)


def uses(operation, **options):
    """Each entry point, with one object."""
    return (
        lambda: operation.using(**options).map(["a"]),
        lambda: operation.using(**options).stream(["a"]).__next__(),
        lambda: (operation | operation).using(**options).map(["a"]),
        lambda: concurrent_saves(**options).__enter__(),
    )


@pytest.mark.parametrize("executor", ["process", "thread", "serial", "auto"])
def test_a_run_before_the_models_are_loaded_is_refused(monkeypatch, executor):
    monkeypatch.setattr(apps, "models_ready", False)
    for use in uses(operations.save_person, executor=executor):
        with pytest.raises(InvalidOperation, match=r"apps are not loaded yet.*call django\.setup\(\)"):
            use()


@pytest.mark.parametrize("options", [{"start_method": "forkserver"}, {"executor": "process-pool"}])
def test_fresh_workers_are_refused_in_ready(monkeypatch, options):
    monkeypatch.setattr(apps, "ready", False)  # as while AppConfig.ready() runs
    for use in uses(operations.save_person, **options):
        with pytest.raises(InvalidOperation, match=r"not in AppConfig\.ready\(\), or use executor"):
            use()


def test_transaction_on_an_alias_not_in_databases_is_allowed():
    with transaction.atomic(using="second"):
        assert operations.save_person.map(["a"]).ok


def test_an_unknown_alias_is_refused():
    with pytest.raises(InvalidOption, match="'nowhere'"):
        operations.save_person.using(databases=("nowhere",)).map(["a"])


@pytest.fixture
def in_memory():
    """The default database as a test runner has it by default: in memory, shared between threads."""
    connection = connections["default"]
    before = connection.settings_dict["NAME"]

    def become(name):
        connection.close()
        connection.settings_dict["NAME"] = name
        connection.ensure_connection()
        with connection.schema_editor() as editor:
            for model in (Person, Person._meta.get_field("tags").related_model):
                editor.create_model(model)
            editor.create_model(Person._meta.apps.get_model("tests", "Badge"))

    yield become
    connection.inc_thread_sharing()
    super(type(connection), connection).close()
    connection.dec_thread_sharing()
    connection.settings_dict["NAME"] = before
    connection.connection = None


@pytest.mark.parametrize("name", [":memory:", "file:people?mode=memory&cache=shared"])
def test_processes_refuse_a_database_in_memory(in_memory, name, start_method):
    in_memory(name)
    with pytest.raises(SharedMemoryDatabase, match="serial"):
        operations.save_person.using(start_method=start_method).map(["a"])


def test_threads_refuse_an_in_memory_database_of_one_connection(in_memory):
    in_memory(":memory:")
    with pytest.raises(SharedMemoryDatabase, match='use executor="serial"'):
        operations.save_person.using(executor="thread").map(["a"])


def test_threads_take_turns_on_a_shared_in_memory_database(in_memory):
    in_memory("file:people?mode=memory&cache=shared")
    names = [f"p{number}" for number in range(40)]
    assert operations.save_person.using(executor="thread", workers=4).map(names).ok
    assert Person.objects.count() == 40


def test_serial_works_on_any_database_in_memory(in_memory):
    in_memory(":memory:")
    assert operations.save_person.using(executor="serial").map(["a", "b"]).ok
    assert Person.objects.count() == 2


def test_block_used_inside_a_transaction_is_refused(pool, alias):
    with concurrent_saves(**pool, workers=1, databases=(alias,), on_failure="collect") as saves:
        with transaction.atomic(using=alias):
            uses = (
                lambda: saves.save(Person(name="a"), using=alias),
                lambda: saves.submit(operations.doubles, 1),
                lambda: saves.map(operations.doubles, [1]),
            )
            for use in uses:
                if pool["executor"] == "serial":
                    use()
                    continue
                with pytest.raises(InsideTransaction):
                    use()
        assert saves.submit(operations.doubles, 1).result(30) == 2
