"""The handlers of SIGINT and SIGTERM are there while a run is, and those of the program come back."""

import signal
from types import SimpleNamespace

import pytest

from poolsave._runs import signals
from poolsave._runs.signals import InterruptGuard


def test_a_handler_of_the_program_is_left_in_place():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with InterruptGuard(lambda: None, at_once=lambda _count: False):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


def test_signal_while_handlers_are_taken_away_leaves_none(monkeypatch):
    def interrupt_first(signum, handler):
        if (signum, handler) == (signal.SIGTERM, signal.SIG_DFL):
            signal.raise_signal(signal.SIGINT)
        signal.signal(signum, handler)

    with InterruptGuard(lambda: None, at_once=lambda _count: True) as interrupts:
        monkeypatch.setattr(signals, "_signal", SimpleNamespace(getsignal=signal.getsignal, signal=interrupt_first))
    assert interrupts.count == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


class Alarm(Exception):
    """What a handler of the program's own raises, between any two instructions."""


@pytest.fixture(params=["while they are set", "while they are taken away", "before they are"])
def left_behind(request, monkeypatch):
    """Handlers of a run that has ended."""

    class Unleavable(InterruptGuard):
        def __exit__(self, *_exc_info):
            if request.param == "before they are":
                raise Alarm
            super().__exit__()

    def runs():
        with Unleavable(lambda: None, at_once=lambda _count: False):
            pass

    def signal_or_alarm(signum, handler):
        sets = callable(handler) and handler is not signal.default_int_handler
        if sets:
            signal.signal(signum, handler)
        if {True: "while they are set", False: "while they are taken away"}[sets] == request.param:
            raise Alarm

    with monkeypatch.context() as patch:
        patch.setattr(signals, "_signal", SimpleNamespace(getsignal=signal.getsignal, signal=signal_or_alarm))
        with pytest.raises(Alarm):
            runs()
    assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.usefixtures("left_behind")
def test_handlers_left_behind_are_replaced_by_the_next_run():
    with InterruptGuard(lambda: None, at_once=lambda _count: False) as interrupts:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.count == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.usefixtures("left_behind")
def test_handlers_left_behind_raise_keyboard_interrupt():
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
