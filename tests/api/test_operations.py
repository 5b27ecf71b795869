"""Decorated functions keep their names, types and manners, wherever they are defined."""

import inspect
import pickle
import subprocess
import sys
import textwrap

import pytest

from poolsave import InvalidOperation, InvalidOption, PooledOperation, pooled_operation
from tests.conftest import START_METHODS
from tests.support import operations


def test_an_operation_is_still_its_function():
    assert operations.doubles(4) == 8
    assert operations.doubles.__name__ == "doubles"
    assert operations.doubles.__wrapped__ is operations.doubles.func
    assert list(inspect.signature(operations.adds).parameters) == ["first", "second", "third"]
    assert operations.adds.bind(third=5)(1, 2) == 8


def test_using_and_bind_give_copies():
    changed = operations.doubles.using(workers=7)
    assert changed.options.workers == 7
    assert operations.doubles.options.workers == 2
    assert changed.func is operations.doubles.func
    assert "workers=7" in repr(changed)


def test_operations_pickle_by_reference():
    assert pickle.loads(pickle.dumps(operations.doubles)) is operations.doubles
    copy = pickle.loads(pickle.dumps(operations.adds.using(workers=3).bind(third=1)))
    assert copy(1, 2) == 4
    assert copy.options.workers == 3


def test_decorating_again_adds_options():
    again = pooled_operation(workers=5)(operations.doubles)
    assert (again.options.workers, again.options.transaction) == (5, None)
    assert again.func is operations.doubles.func


@pytest.mark.parametrize("keyword", ["chunk_size", "worker"])
def test_unknown_options_are_refused_at_decoration(keyword):
    with pytest.raises(InvalidOption, match=f"{keyword}=4.*no such option"):
        pooled_operation(**{keyword: 4})


def test_generators_and_coroutines_are_refused_at_decoration():
    def generates(item):
        yield item

    async def awaits(item):
        return item

    class Awaits:
        async def __call__(self, item):
            return item

    class Generates:
        def __call__(self, item):
            yield item

    for unsuitable in (generates, awaits, Generates(), Awaits(), 4):
        with pytest.raises(InvalidOperation):
            pooled_operation(unsuitable)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_lambda_is_refused_before_any_worker_starts(method):
    read = []
    double = pooled_operation(transaction=None, start_method=method)(lambda number: 2 * number)
    with pytest.raises(InvalidOperation, match=r"(?s)<lambda>.*@pooled_operation\n    def save_one"):
        double.map(read.append(number) or number for number in range(3))
    assert read == []


def test_a_closure_works_under_fork():
    factor = 3

    @pooled_operation(transaction=None, start_method="fork", workers=2)
    def multiply(number):
        return factor * number

    assert multiply.map([1, 2, 3]).values == [3, 6, 9]


class Importer:
    factor = 5

    def run(self, numbers):
        return operations.doubles.map(numbers).values

    @pooled_operation(transaction=None, workers=2, progress=False)
    def multiply(self, number):
        return self.factor * number


def test_an_operation_can_be_called_by_a_method_and_be_one(pool):
    importer = Importer()
    assert importer.run([1, 2]) == [2, 4]
    assert importer.multiply(2) == 10
    importer.factor = 7
    assert importer.multiply.using(**pool).map([1, 2]).values == [7, 14]
    assert isinstance(Importer.multiply, PooledOperation)


SCRIPT = """
    import sys
    import django
    from django.conf import settings

    settings.configure(
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"], USE_TZ=True,
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[2]}},
    )
    django.setup()

    from django.contrib.auth.models import Group
    from poolsave import concurrent_saves, pooled_operation

    @pooled_operation(workers=2, progress=False)
    def create_group(name):
        return Group.objects.create(name=name).pk

    @pooled_operation(workers=1, progress=False)
    def mail_settings(_item):
        return settings.DEFAULT_FROM_EMAIL

    if __name__ == "__main__":
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        report = create_group.using(start_method=sys.argv[1]).map(["a", "b", "c"])
        report.raise_if_failed()
        with concurrent_saves(start_method=sys.argv[1], workers=2) as saves:
            saves.submit(create_group, "d")
            group = Group(name="e")
            saves.save(group)
        assert Group.objects.get(name="e").pk == group.pk
        from django.test import override_settings

        with override_settings(DEFAULT_FROM_EMAIL="overridden"):
            assert mail_settings.using(start_method=sys.argv[1]).map([1]).values == ["overridden"]
        print(sorted(Group.objects.values_list("name", flat=True)))
"""
CONFIGURED_LATE = """
    import sys
    from poolsave import pooled_operation

    @pooled_operation(workers=2, progress=False)
    def create_group(name):
        from django.contrib.auth.models import Group

        return Group.objects.create(name=name).pk

    def main():
        import django
        from django.conf import settings
        from django.core.management import call_command

        settings.configure(
            INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"], USE_TZ=True,
            DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[2]}},
        )
        django.setup()
        call_command("migrate", verbosity=0)
        create_group.using(start_method=sys.argv[1]).map(["a", "b", "c", "d", "e"]).raise_if_failed()
        from django.contrib.auth.models import Group

        print(sorted(Group.objects.values_list("name", flat=True)))

    if __name__ == "__main__":
        main()
"""
WITH_MODULE = """
    import os
    import sys

    os.environ["DJANGO_SETTINGS_MODULE"] = "its_settings"

    import django

    django.setup()

    from django.contrib.auth.models import Group
    from poolsave import pooled_operation

    @pooled_operation(workers=2, progress=False)
    def create_group(name):
        return Group.objects.create(name=name).pk

    if __name__ == "__main__":
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        create_group.using(start_method=sys.argv[1]).map("abcde").raise_if_failed()
        print(sorted(Group.objects.values_list("name", flat=True)))
"""


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("script", [SCRIPT, CONFIGURED_LATE, WITH_MODULE], ids=["configure", "late", "module"])
def test_scripts_that_configure_django_themselves_work(tmp_path, script, method):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(script))
    database = str(tmp_path / "db.sqlite3")
    (tmp_path / "its_settings.py").write_text(
        'INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth"]\nUSE_TZ = True\n'
        f'DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": {database!r}}}}}\n'
    )
    done = run_script([str(path), method, database])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['a', 'b', 'c', 'd', 'e']"
    assert done.stderr == ""


UNGUARDED = """
    import sys
    from poolsave import pooled_operation

    @pooled_operation(workers=1, progress=False, transaction=None, start_method=sys.argv[1])
    def double(number):
        return 2 * number

    {call}
"""


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_script_without_a_main_guard_is_refused_with_the_fix(tmp_path, method):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(UNGUARDED.format(call="double.map([1])")))
    done = run_script([str(path), method])
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1  # that of the caller: no worker has begun
    last = done.stderr.rpartition("InvalidOperation")[2]
    assert 'start it from under if __name__ == "__main__":' in last


def test_script_with_a_guard_that_does_not_hold_ends(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(UNGUARDED.format(call="if sys.argv: double.map([1])")))
    done = run_script([str(path), "spawn"])
    assert done.returncode == 1
    last = done.stderr.rpartition("WorkerDied")[2]
    assert "before it began an object" in last
    assert 'start the run under if __name__ == "__main__":' in last


def run_script(arguments, **options):
    import os

    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    return subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
        **options,
    )
