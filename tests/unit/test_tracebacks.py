"""The text of a traceback is what Python prints, and a place where many objects fail is looked at once."""

import ast
import traceback

import pytest

from poolsave._pickling.tracebacks import MAX_STACKS, format_traceback


class OwnError(Exception):
    """One of another module."""


def chained(error, first, *, by_cause):
    try:
        try:
            raise first
        except Exception as before:
            if by_cause:
                raise error from before
            raise error  # noqa: B904  the context is what is tried
    except Exception as raised:
        return raised


def noted():
    error = ValueError("with notes")
    error.add_note("the first\nand its second line")
    return error


def misspelt():
    try:
        return orm
    except NameError as error:
        return error


def circular():
    first, second = ValueError(1), ValueError(2)
    first.__context__, second.__context__ = second, first
    return first


def deep(depth):
    if depth:
        deep(depth - 1)
    raise OwnError("deep")


def fail_at(place):
    if place == 1:
        raise OwnError("here")
    raise OwnError("here")


def raised_by(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        return error


ERRORS = {
    "never raised": lambda: OwnError("text"),
    "without a text": lambda: chained(OwnError(), KeyError("a"), by_cause=True),
    "of several lines": lambda: chained(ValueError("a\nb"), OSError(2, "no such file"), by_cause=False),
    "raised from None": lambda: chained(
        ValueError(1), chained(ValueError(2), KeyError(3), by_cause=False), by_cause=True
    ),
    "three links": lambda: chained(ValueError(1), chained(ValueError(2), KeyError(3), by_cause=False), by_cause=False),
    "recursive": lambda: raised_by(deep, 10),
    "circular": circular,
    "noted": noted,
    "after a noted one": lambda: chained(OwnError("text"), noted(), by_cause=True),
    "a name": misspelt,
    "syntax": lambda: raised_by(ast.parse, "a = = 2"),
    "a group": lambda: chained(ExceptionGroup("two", [ValueError(1), OwnError(2)]), KeyError(1), by_cause=True),
}


@pytest.mark.parametrize("make", ERRORS.values(), ids=ERRORS)
def test_text_is_what_python_prints(make):
    for error in (make(), make()):
        assert format_traceback(error) == "".join(traceback.format_exception(error))


def test_errors_of_one_place_share_its_text_and_no_other(monkeypatch):
    first, elsewhere = raised_by(fail_at, 1), raised_by(fail_at, 2)
    text = format_traceback(first)
    monkeypatch.setattr(traceback, "format_tb", lambda _frames: ["looked again\n"])
    again = raised_by(fail_at, 1)
    again.args = ("of another object",)
    assert format_traceback(again) == text.replace("OwnError: here", "OwnError: of another object")
    assert "looked again" in format_traceback(elsewhere)


def test_many_places_do_not_fill_the_memory():
    from poolsave._pickling import tracebacks

    for depth in range(MAX_STACKS + 5):
        format_traceback(raised_by(deep, depth))
    assert len(tracebacks._stacks) <= MAX_STACKS
