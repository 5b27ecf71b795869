"""Objects, values and exceptions that break other pools; importable, so that every worker finds them."""

import threading

from tests.operations import pure


class RaisesWhenRestored:
    def __reduce__(self):
        return refuse_to_be_restored, ()


def refuse_to_be_restored():
    raise ValueError("not here")


class RaisesWhenPickled:
    def __reduce__(self):
        raise ValueError("not me")


class NeedsTwo(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


class NeedsKeyword(Exception):
    def __init__(self, *, reason):
        super().__init__(reason)


class IsFalsy(Exception):
    def __bool__(self):
        return False


class HoldsALock(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class CannotBeTold(Exception):
    def __str__(self):
        raise RuntimeError("no words")

    __repr__ = __str__


class NoException(BaseException):
    pass


RAISED = {
    "several arguments": lambda: NeedsTwo("this", "that"),
    "keyword only": lambda: NeedsKeyword(reason="why"),
    "falsy": lambda: IsFalsy("yes"),
    "unpicklable attribute": lambda: HoldsALock("kept"),
    "untellable": CannotBeTold,
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "BaseException": lambda: NoException("base"),
    "ExceptionGroup": lambda: ExceptionGroup("group", [ValueError(1), KeyError(2)]),
    "BaseExceptionGroup": lambda: BaseExceptionGroup("group", [SystemExit(1), KeyError(2)]),
    "StopIteration": lambda: StopIteration(5),
    "GeneratorExit": GeneratorExit,
}
RETURNED = {
    "unpicklable": threading.Lock,
    "raises when pickled": RaisesWhenPickled,
    "raises when restored": RaisesWhenRestored,
    "local class": lambda: type("Local", (), {})(),
}


@pure
def raises(name):
    if name in RAISED:
        error = RAISED[name]()
        raise error
    return name


@pure
def returns(name):
    return RETURNED[name]() if name in RETURNED else name


@pure
def gives_type(item):
    return type(item).__name__
