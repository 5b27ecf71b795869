"""An exception has its own class in the caller wherever that class can be imported, with what of it can cross.

What is right is what a plain call raises.
"""

import subprocess
import sys
import textwrap
import traceback

import pytest

from poolsave import RemoteError, Status
from tests.contract.demanding import ERRORS, HoldsLock, InSlots, KeywordOnly, Names, raises_demanding
from tests.support.pools import those

CROSSING = those(lambda executor: not executor.shares_memory)


def raised(name):
    try:
        raises_demanding(name)
    except BaseException as error:
        return error


def plain(values):
    """Values of built-in types, by which two exceptions can be compared."""
    return {name: value for name, value in values if isinstance(value, int | str)}


@pytest.mark.parametrize("pool", CROSSING, indirect=True)
def test_exception_has_the_class_that_a_plain_call_raises(pool):
    report = raises_demanding.using(**pool).map(ERRORS)
    assert [failure.item for failure in report.failures] == [*ERRORS]
    for failure in report.failures:
        error, expected = failure.error, raised(failure.item)
        assert type(error) is type(expected)
        assert plain(enumerate(error.args)).items() >= plain(enumerate(expected.args)).items()
        assert plain(vars(error).items()) == plain(vars(expected).items())
        assert "KeyError: 'first'" in str(error.__cause__)
        assert "raise error from first" in failure.traceback
        assert failure.status is Status.FAILED


def given(name):
    (failure,) = raises_demanding.using(start_method="fork").map([name]).failures
    return failure.error


@pytest.mark.parametrize(
    "name", ["file", "undecodable", "two bases", "keyword only", "exit", "in slots", "makes its text"]
)
def test_its_text_is_that_of_a_plain_call(name):
    assert str(given(name)) == str(raised(name))


def test_a_caller_can_catch_it_by_its_class():
    with pytest.raises(ExceptionGroup) as caught:
        raises_demanding.using(start_method="fork", on_failure="raise").map(["keyword only"])
    matching, rest = caught.value.split(KeywordOnly)
    assert [error.code for error in matching.exceptions] == [7]
    assert rest is None


def test_parts_that_cannot_cross_are_named():
    error = given("holds a lock")
    assert type(error) is HoldsLock
    assert error.args[0] == 7
    assert "lock" in error.args[1]
    assert not hasattr(error, "lock")
    (note,) = error.__notes__
    assert note.endswith("is missing here: args[1] (its repr is there), lock")
    assert note in "".join(traceback.format_exception(error))


def test_slots_come_back_as_they_are():
    error = given("in slots")
    assert type(error) is InSlots
    assert (error.code, error.nothing, hasattr(error, "empty")) == (7, None, False)


def test_exceptions_that_it_names_have_their_class_too():
    error = given("names others")
    assert type(error) is Names
    assert type(error.first) is KeywordOnly
    assert error.first is error.args[0]
    group = given("group")
    assert [type(member) for member in group.exceptions] == [KeywordOnly, ValueError]
    assert (group.message, group.exceptions[0].code) == ("several", 1)


def test_class_that_cannot_be_found_is_replaced_by_remote_error():
    error = given("local")
    assert type(error) is RemoteError
    assert error.class_path.endswith("raises_local.<locals>.Local")
    assert (error.message, error.arguments) == ("7", "(7,)")


SCRIPT = """
    import django
    from django.conf import settings
    from poolsave import pooled_operation

    class OfTheScript(Exception):
        def __init__(self, code, *, reason):
            super().__init__(code)

    @pooled_operation(workers=1, transaction=None, progress=False, start_method="spawn")
    def fails(code):
        raise OfTheScript(code, reason="why")

    if __name__ == "__main__":
        settings.configure()
        django.setup()
        (failure,) = fails.map([7]).failures
        assert type(failure.error) is OfTheScript, repr(failure.error)
        assert failure.error.args == (7,)
"""


def test_class_of_a_script_is_found_though_workers_import_it(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
