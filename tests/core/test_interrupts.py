"""Signals are raised where that does no harm, and only once."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from importlib.abc import MetaPathFinder

import pytest

from cellwright.core import interrupts
from cellwright.core.interrupts import CommandSignals, Interrupted, SignalHandler, handle_signals


@pytest.fixture
def handler() -> Iterator[SignalHandler]:
    handler = SignalHandler()
    with handle_signals(handler):
        yield handler


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_a_signal_gives_its_exit_code(number: signal.Signals, handler: SignalHandler) -> None:
    with pytest.raises(Interrupted, match=number.name) as raised:
        signal.raise_signal(number)
    assert raised.value.exit_code == 128 + number
    signal.raise_signal(signal.SIGINT)  # at the same time: it counts as one
    assert (handler.received, handler.times) == (number, 1)


def test_an_import_is_finished_first(handler: SignalHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder(MetaPathFinder):
        def find_spec(self, *_: object) -> None:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError):
        import no_such_module  # type: ignore[import-not-found] # noqa: F401
    with pytest.raises(Interrupted):
        time.sleep(2)


def test_a_signal_in_a_destructor_is_raised_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Destroyed:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    signals = CommandSignals()
    signals.start()
    monkeypatch.setattr(sys, "unraisablehook", signals.on_unraisable)
    with handle_signals(signals), pytest.raises(Interrupted):
        Destroyed()
        time.sleep(2)


def test_ignored_signals_stay_ignored_and_handlers_are_restored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with handle_signals(SignalHandler()):
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)
