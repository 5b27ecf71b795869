"""Objects, values and exceptions that break other pools; importable, so that every worker finds them."""

import os
import signal
import threading
import warnings

from poolsave import concurrent_saves
from tests.support import operations
from tests.support.operations import pure, saving


class RaisesWhenRestored:
    copied = False

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
DEATHS = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "crashed": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "left": lambda: os._exit(0),
}
STOPPED = {"stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP)}


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


@pure
def does(what):
    """Does what its object says, which is nothing bad for most of them."""
    if what in RAISED:
        raises(what)
    return {**RETURNED, **DEATHS, **STOPPED}.get(what, lambda: what)()


@pure
def leaves_a_trace(number, *, folder, deadly):
    """Says by a file how often it was begun."""
    with open(f"{folder}/{number}", "a") as file:
        file.write("x")
    if number == deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@saving
def saves_all_and_dies(name, *, alias, deadly):
    """Leaves the worker no time to roll back."""
    key = operations.save_person(name, alias=alias)
    if name == deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return key


class Restored:
    """Knows whether it has been pickled on its way."""

    copied = False

    def __reduce__(self):
        return restored_copy, ()


def restored_copy():
    copy = Restored()
    copy.copied = True
    return copy


class KillsWhoRestoresIt:
    copied = False

    def __reduce__(self):
        return os._exit, (5,)


@pure
def was_restored(_item, *, constant):
    return constant.copied


@pure
def maps_inside(item, *, inner, workers=2):
    """Where a worker cannot have processes, its threads are used with a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*daemonic", RuntimeWarning)
        return operations.nested(item, inner=inner, workers=workers)


@pure
def opens_a_block_inside(_item):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*daemonic", RuntimeWarning)
        with concurrent_saves(workers=2, transaction=None) as saves:
            futures = [saves.submit(operations.doubles, number) for number in (1, 2)]
    return [future.result() for future in futures]


@saving
def maps_inside_its_transaction(_item, *, alias):
    return operations.save_person.using(executor="thread", databases=(alias,)).bind(alias=alias).map(["inner"]).values
