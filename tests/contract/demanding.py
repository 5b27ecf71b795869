"""Exceptions that pickle cannot restore, or not wholly; importable, so that the caller finds them."""

import dataclasses
import threading

from poolsave import pooled_operation


class SeveralArguments(Exception):
    def __init__(self, code, reason):
        super().__init__(f"{code}: {reason}")
        self.code = code


class KeywordOnly(SeveralArguments):
    def __init__(self, code, *, reason):
        super().__init__(code, reason)


class MakesItsText(Exception):
    """Pickle restores it with the text made of the text."""

    def __init__(self, code):
        super().__init__(f"error {code}")


class HoldsLock(Exception):
    def __init__(self, code):
        super().__init__(code, threading.Lock())
        self.code = code
        self.lock = threading.Lock()


class InSlots(Exception):
    __slots__ = ("code", "empty", "nothing")

    def __init__(self, code):
        super().__init__("in slots")
        self.code = code
        self.nothing = None


@dataclasses.dataclass(frozen=True)
class FrozenFields(Exception):
    code: int


class DemandingNew(Exception):
    def __new__(cls, code, *, reason):
        error = super().__new__(cls, code, reason)
        error.code = code
        return error

    def __init__(self, code, *, reason):
        super().__init__(code, reason)


class MissingFile(FileNotFoundError):
    def __init__(self, code, *, name):
        super().__init__(code, "missing", name)
        self.code = code


class Undecodable(UnicodeDecodeError):
    def __init__(self, code):
        super().__init__("utf-8", b"a\xff", 1, 2, "not valid")
        self.code = code


class Leaves(SystemExit):
    def __init__(self, code, *, reason):
        super().__init__(code)


class TwoBases(ValueError, OSError):
    def __init__(self, code, *, reason):
        super().__init__(reason)
        self.code = code


class Refuses(Exception):
    def __init__(self, code, reason):
        super().__init__(reason)
        vars(self)["code"] = code

    def __setattr__(self, name, value):
        raise TypeError(f"{name} cannot be set")


class Names(Exception):
    """Has another one as its attribute and as an argument, and itself."""

    def __init__(self, code, *, reason):
        super().__init__(KeywordOnly(code, reason=reason))
        self.code = code
        self.first = self.args[0]
        self.itself = self


class Group(ExceptionGroup):
    def __new__(cls, code, *, members):
        group = super().__new__(cls, "several", members)
        group.code = code
        return group

    def __init__(self, code, *, members):
        super().__init__(code)


def raises_local(code):
    class Local(Exception):
        pass

    raise Local(code)


ERRORS = {
    "several arguments": lambda: SeveralArguments(7, "why"),
    "keyword only": lambda: KeywordOnly(7, reason="why"),
    "makes its text": lambda: MakesItsText(7),
    "holds a lock": lambda: HoldsLock(7),
    "in slots": lambda: InSlots(7),
    "frozen": lambda: FrozenFields(7),
    "__new__": lambda: DemandingNew(7, reason="why"),
    "file": lambda: MissingFile(7, name="a.txt"),
    "undecodable": lambda: Undecodable(7),
    "exit": lambda: Leaves(7, reason="why"),
    "two bases": lambda: TwoBases(7, reason="why"),
    "refuses": lambda: Refuses(7, "why"),
    "names others": lambda: Names(7, reason="why"),
    "group": lambda: Group(7, members=[KeywordOnly(1, reason="why"), ValueError(2)]),
}


@pooled_operation(workers=2, progress=False, transaction=None)
def raises_demanding(name):
    if name == "local":
        raises_local(7)
    error = ERRORS[name]()
    try:
        raise KeyError("first")
    except KeyError as first:
        raise error from first
