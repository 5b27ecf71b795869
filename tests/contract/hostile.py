"""Exceptions whose classes refuse to be looked into, changed or shown; importable, so that every worker finds them."""

import dataclasses

from poolsave import pooled_operation
from poolsave.errors import RowGone
from tests.models import Tag


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """As many house styles want it."""


@dataclasses.dataclass(frozen=True)
class FrozenWithField(Exception):
    number: int = 1


class RefusesAttributes(Exception):
    def __setattr__(self, name, value):
        raise TypeError(f"{name} cannot be set")


class Slotted(Exception):
    __slots__ = ("__notes__", "report")


class DelegatesToNothing(Exception):
    """Half of all delegating __getattr__ recurse without an end."""

    def __getattr__(self, name):
        return getattr(self.response, name)


class RefusesLookups(Exception):
    def __getattribute__(self, name):
        raise ValueError(f"{name} is not told")


class ExitsOnLookup(Exception):
    def __getattr__(self, name):
        raise SystemExit(name)


class RefusesItsName(type(Exception)):
    def __getattribute__(cls, name):
        if name in ("__module__", "__name__", "__qualname__"):
            raise ValueError(f"{name} is not told")
        return super().__getattribute__(name)


class HasNoName(Exception, metaclass=RefusesItsName):
    pass


class NoModule(Exception):
    pass


NoModule.__module__ = None


class LiesAboutItsClass(Exception):
    @property
    def __class__(self):
        return RowGone


class HasNoClass(Exception):
    @property
    def __class__(self):
        raise ValueError("none")


class RaisesInEveryMethod(Exception):
    def _refuse(self, *_args):
        raise RuntimeError("no")

    __str__ = __repr__ = __reduce__ = __reduce_ex__ = __bool__ = __eq__ = __hash__ = with_traceback = _refuse
    add_note = __setstate__ = _refuse


class ExitsInEveryMethod(Exception):
    def _leave(self, *_args):
        raise SystemExit("no")

    __str__ = __repr__ = __reduce__ = __reduce_ex__ = __bool__ = add_note = _leave


class HasNoNotes(Exception):
    add_note = None
    __notes__ = property()


class NotesAreText(Exception):
    def __init__(self, *args):
        super().__init__(*args)
        self.__notes__ = "a text"


class HidesItsCause(Exception):
    __cause__ = property()
    __traceback__ = property()
    args = property()
    report = property()


class FrozenGroup(ExceptionGroup):
    def __setattr__(self, name, value):
        raise TypeError(f"{name} cannot be set")


class FalsyExit(BaseException):
    def __bool__(self):
        return False

    def __setattr__(self, name, value):
        raise TypeError(f"{name} cannot be set")


class TellsSurrogates(Exception):
    def __str__(self):
        return "\udcff"


CLASSES = {
    one.__name__: one
    for one in (
        Frozen,
        FrozenWithField,
        RefusesAttributes,
        Slotted,
        DelegatesToNothing,
        RefusesLookups,
        ExitsOnLookup,
        NoModule,
        LiesAboutItsClass,
        HasNoClass,
        RaisesInEveryMethod,
        ExitsInEveryMethod,
        HasNoNotes,
        NotesAreText,
        HidesItsCause,
        FalsyExit,
        TellsSurrogates,
    )
}
CLASSES["HasNoName"] = HasNoName


def make(name):
    """The exception of that name."""
    if name == "FrozenGroup":
        return FrozenGroup("frozen", [Frozen(), RaisesInEveryMethod()])
    return CLASSES[name]()


NAMES = [*CLASSES, "FrozenGroup"]


@pooled_operation(workers=2, progress=False, transaction=None)
def raises_hostile(name):
    if name in NAMES:
        raise make(name)
    return name


@pooled_operation(workers=2, progress=False)
def saves_and_raises_hostile(name):
    Tag.objects.create(name=name)
    raises_hostile(name)


class HostileToPickle:
    """An object of the input whose pickling raises a hostile exception."""

    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        raise make(self.name)
