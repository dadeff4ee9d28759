"""The recorded environment, and settings of the process that are restored after a run."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import pytest
import torch

from cellwright.core import interrupts
from cellwright.training.environment import describe_environment, git_state, interruptible, reproducible


def test_the_environment_is_json_without_paths(tmp_path: Path) -> None:
    described = describe_environment(torch.device("cpu"), None, {"data": "abc"})
    text = json.dumps(described)
    assert str(Path.home()) not in text or str(Path.home()) == "/"
    assert described["threads"] == torch.get_num_threads()
    assert described["versions"]["torch"]
    assert git_state(tmp_path) is None


def test_settings_of_torch_are_restored() -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with pytest.raises(ZeroDivisionError), reproducible(before[0] + 1, deterministic=True):
        assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (before[0] + 1, True)
        raise ZeroDivisionError
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_a_signal_takes_effect_at_the_next_allowed_block(monkeypatch: pytest.MonkeyPatch) -> None:
    with interruptible() as interruption:
        signal.raise_signal(signal.SIGTERM)
        assert (interruption.received, interruption.hurried) == (signal.SIGTERM, False)
        with pytest.raises(KeyboardInterrupt), interruption.allowed():
            pytest.fail("the pending request is raised before the block starts")
        signal.raise_signal(signal.SIGHUP)  # at the same time: a terminal sends more than one
        assert not interruption.hurried
        monkeypatch.setattr(interrupts, "_SAME_S", 0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interruption.hurried


def test_other_threads_cannot_be_interrupted() -> None:
    before, results = signal.getsignal(signal.SIGINT), []

    def run() -> None:
        with interruptible() as interruption:
            results.append((signal.getsignal(signal.SIGINT) is before, interruption.received))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert results == [(True, None)]
